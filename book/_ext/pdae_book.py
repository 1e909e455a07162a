"""What these pages need beyond Jupyter Book: links between terms, code and chapters; docstrings as reST; one place for
a public URL.

- The first mention of a glossary term on each page leads to the glossary, and each entry there leads back to those
  places.
- Inline code that names something of the library (`losses.fill`, `pdae.encode(images)`) leads to the API reference.
- Docstrings are plain text with single backticks; here they become reST that warns of nothing.
- `pdae_repository` in _config.yml: once it holds a URL, chapters get buttons for Colab and Binder; without one they get
  none.
"""
import lzma
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

GLOSSARY, API = "notation", "api"
UNLINKED = {GLOSSARY, API, "equations", "results", "claims", "timings", "models", "families", "benchmarks", "commands",
            "files", "verdict",
            "bibliography"}  # pages where no term is linked
MARKED_ONLY = {"fill", "frozen", "head"}  # everyday words: a term only where they are set in bold or italics
AUTOENCODER = "pdae_lite.autoencoder.Autoencoder"
INSTANCES = {"schedule": ("pdae_lite.schedule.NoiseSchedule",), "pdae": ("pdae_lite.pdae.PDAE", AUTOENCODER),
             "model": (AUTOENCODER,)}


# ---- glossary -------------------------------------------------------------------------------------------------------


def terms(env) -> dict[str, tuple[str, str]]:
    """Term in lower case → (term, its id on the glossary's page)."""
    objects = env.get_domain("std").objects
    return {name.lower(): (name, anchor) for (kind, name), (page, anchor) in objects.items() if kind == "term"
            and page == GLOSSARY}


def mentions(doctree, known) -> dict[str, tuple[nodes.Text, int, int]]:
    """The first mention of each term in running text: its text node, and where in it the mention begins and ends."""
    found, taken = {}, {}
    longest_first = sorted(known, key=len, reverse=True)
    for text in doctree.findall(nodes.Text):
        marked = (isinstance(text.parent, (nodes.strong, nodes.emphasis))
                  and isinstance(text.parent.parent, nodes.paragraph))
        if not marked and not isinstance(text.parent, nodes.paragraph):
            continue
        for key in longest_first:
            name = known[key][0]
            if key in found or (key in MARKED_ONLY and not marked):
                continue
            for match in re.finditer(rf"(?<![\w-]){re.escape(name)}s?(?![\w-])", str(text),
                                     0 if name[0].isupper() else re.I):
                start, end = match.span()
                if all(end <= a or start >= b for a, b in taken.get(text, ())):
                    found[key] = (text, start, end)
                    taken.setdefault(text, []).append((start, end))
                    break
    return found


def find_terms(app, env):
    """Which pages mention which term; the glossary is written anew whenever anything else was."""
    known = terms(env)
    env.pdae_mentions = {page: sorted(mentions(env.get_doctree(page), known))
                         for page in sorted(env.found_docs - UNLINKED)}
    return [GLOSSARY] if GLOSSARY in env.found_docs else []


def link_terms(app, doctree, page):
    known = terms(app.env)
    if page == GLOSSARY:
        return link_back(app, doctree)
    if page in UNLINKED:
        return
    by_node = {}
    for key, (text, start, end) in mentions(doctree, known).items():
        by_node.setdefault(text, []).append((start, end, key))
    uri = app.builder.get_relative_uri(page, GLOSSARY)
    for text, spans in by_node.items():
        parts, at = [], 0
        for start, end, key in sorted(spans):
            link = nodes.reference(str(text)[start:end], str(text)[start:end], internal=True,
                                   refuri=f"{uri}#{known[key][1]}", ids=[f"mention-{known[key][1]}"], classes=["term"])
            parts += [nodes.Text(str(text)[at:start]), link]
            at = end
        text.parent.replace(text, [*parts, nodes.Text(str(text)[at:])])


def link_back(app, doctree):
    pages_in_order = [app.config.root_doc, *app.env.toctree_includes.get(app.config.root_doc, ())]
    order = [page for page in pages_in_order if page in app.env.pdae_mentions]
    for item in doctree.findall(nodes.definition_list_item):
        anchors = [i for term in item.findall(nodes.term) for i in term["ids"]]
        keys = [key for key, (_, anchor) in terms(app.env).items() if anchor in anchors]
        pages = [page for page in order if set(keys) & set(app.env.pdae_mentions[page])]
        if not keys or not pages:
            continue
        line = nodes.paragraph("", "In: ", classes=["mentioned-in"])
        for i, page in enumerate(pages):
            title = app.env.titles[page].astext()
            line += [nodes.Text(" · ")] if i else []
            line += nodes.reference(title, title, internal=True,
                                    refuri=f"{app.builder.get_relative_uri(GLOSSARY, page)}#mention-{anchors[0]}")
        next(item.findall(nodes.definition)).append(line)


# ---- code -----------------------------------------------------------------------------------------------------------


def target_of(text, objects):
    """The documented name that inline code means, or None."""
    match = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", text, re.S)
    if not match:
        return None
    name = match[1].removeprefix("pdae_lite.")
    first, _, rest = name.partition(".")
    ends = f".{name}"
    if text.startswith("pdae_lite."):
        tries = [f"pdae_lite.{name}"]
    elif rest:
        inherited = [AUTOENCODER] if first in ("PDAE", "DiffAE") else []
        tries = [f"{base}.{rest}" for base in (*INSTANCES.get(first, ()), *inherited)]
        tries += [n for n in objects if n.endswith(ends)]  # a class or a module, in whatever room
        # a room hands it on
        tries += [n for n in objects if n.startswith(f"pdae_lite.{first}.") and n.endswith(f".{rest}")]
    else:
        tries = [n for n in objects if n.endswith(ends) and name[:1].isupper()]
    return next((t for t in tries if t in objects and objects[t].objtype != "module"), None)


def link_code(app, doctree, page):
    """Inline code to the API reference: the first mention of each name on a page."""
    if page == API or API not in app.env.found_docs:
        return
    objects = app.env.get_domain("py").objects
    seen = set()
    for literal in list(doctree.findall(nodes.literal)):
        if isinstance(literal.parent, (nodes.reference, nodes.title, addnodes.pending_xref)):
            continue
        target = target_of(literal.astext(), objects)
        if target and target not in seen:
            seen.add(target)
            entry = objects[target]
            uri = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
            link = nodes.reference("", "", internal=True, refuri=uri, reftitle=target)
            literal.parent.replace(literal, link)
            link += literal


def escaped(lines):
    """Plain text with single backticks as reST. Code may run over the end of a line."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", "\n".join(lines))
    for i, piece in enumerate(pieces):
        if i % 2:
            after = pieces[i + 1][:1]
            pieces[i] = f"``{' '.join(piece.strip('`').split())}``" + ("\\ " if after.isalnum() else "")
        else:
            pieces[i] = re.sub(r"[*|\\]|(?<=\w)_(?=\W|$)", r"\\\g<0>", piece)
    return "".join(pieces).split("\n")


def as_rest(app, what, name, obj, options, given):
    """Docstrings to reST: `code` becomes ``code``; what only looks like markup is escaped; a module's examples stay as
    they are."""
    out, text, example, lines = [], [], False, given
    if what == "module":  # sphinx has taken the indent off, by which an example is known
        lines = (obj.__doc__ or "").split("\n")
    if what in ("attribute", "property"):  # so that napoleon takes no word before a colon for a type
        out.append("")
    for line in [*lines, ""]:
        inside = what == "module" and line.startswith("    ")
        if inside and not example:
            out += [*escaped(text), "::", ""]
            text = []
        example = inside or (example and not line.strip())
        (out if example else text).append(line)
    given[:] = out + escaped(text)


# ---- pages ----------------------------------------------------------------------------------------------------------


def number_equations(app, env):
    """One system for the whole book: an equation of the paper, labelled …-paper-7, is "paper (7)"; the others count by
    chapter."""
    for page, figures in env.toc_fignumbers.items():
        chapter, numbers = re.search(r"(\d+)_", page), figures.get("displaymath", {})
        count = 0
        for label in numbers:
            of_paper = re.search(r"-paper-(\d+)$", label)
            count += not of_paper
            numbers[label] = ((f"paper {of_paper[1]}",) if of_paper else (int(chapter[1]), count)
                              if chapter else (count,))


def mend_html(app, page, template, context, doctree):
    """The paper's equation numbers as the text writes them; roles that a bibliography's list must have for screen
    readers."""
    if "body" in context:
        context["body"] = re.sub(r"\(paper (\d+)(?=[)<])", r"paper (\1", context["body"])
        context["body"] = context["body"].replace('role="doc-biblioentry"',
                                                  'role="listitem"').replace('role="doc-backlink"', 'role="none"')


def public_url(app, config):
    """Buttons for Colab and Binder, only where there is a public repository that they can open."""
    url = config.pdae_repository.strip().rstrip("/")
    if url:
        config.html_theme_options.update({
            "repository_url": url, "repository_branch": config.pdae_branch, "path_to_docs": "",
            "use_repository_button": True,
            "launch_buttons": {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org",
                               "colab_url": "https://colab.research.google.com"}})


# ---- scripts of others -----------------------------------------------------------------------------------------------


def unpack_vendored(app):
    """The vendored scripts, which are stored as .xz, into the built book; before any page asks for their checksums."""
    if app.builder.format == "html":
        for packed in sorted(Path(app.confdir, "_assets", "vendor").glob("*.xz")):
            script = Path(app.outdir, "_static", "vendor", packed.stem)
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_bytes(lzma.decompress(packed.read_bytes()))


def setup(app):
    app.add_config_value("pdae_repository", "", "html")
    app.add_config_value("pdae_branch", "main", "html")
    app.connect("config-inited", public_url, priority=100)
    app.connect("builder-inited", unpack_vendored)
    app.connect("autodoc-process-docstring", as_rest, priority=100)
    app.connect("env-check-consistency", number_equations)  # later than Sphinx numbers them
    app.connect("env-updated", find_terms)
    app.connect("doctree-resolved", link_code)
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", mend_html)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
