"""The cards of the models that ship, as Markdown, and their pictures, from what evaluate.py measured."""
import io
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from measurements import Counts
from PIL import Image

from pdae_lite import viz
from pdae_lite.checkpoint import atomic_path
from pdae_lite.commands.settings import listing, show
from pdae_lite.presets import PRESETS, STAGES, Preset
from pdae_lite.storage import PACKED, contents, file_digest
from pdae_lite.training import TrainConfig

LARGEST = 60_000  # bytes of a picture
WHAT = {
    "digits": {"images": "handwritten digits", "one": "digit", "licence": "The data are MNIST, CC BY-SA 3.0."},
    "peeps": {"images": "drawn faces", "one": "face", "licence": "The data are Open Peeps by Pablo Stanley, CC0 1.0."},
}
TITLES = {"PDAE": "A PDAE on {images}, {shape}, z_dim {z_dim}, with its frozen DPM inside",
          "DiffAE": "A Diff-AE on {images}, {shape}, z_dim {z_dim}: encoder and noise predictor trained together, from "
                    "scratch"}
IDLE = {"train.save_every", "train.log_every", "train.workers", "train.tensorboard"}  # settings that change no weight
NOTES = {  # of single files, by the start of their SHA-256
    "3a9a9f67": "The DPM's run was stopped and resumed five times, partly as two processes, while a mistake in "
                "resuming (mended since) mixed up Adam's moments each time: the commands above give a model of this "
                "kind, not these bits.",
    "6b8f1a11": "The run was resumed with another number of steps in between, so that its learning rate fell from step "
                "1,500 on, not from 1,200: the commands above give a model of this kind, not these bits.",
}


@dataclass(frozen=True)
class Criterion:
    """Something that a model which ships should reach. `what` and `value` are made of the measurements."""

    part: str  # the measurement that it needs
    what: str
    value: float
    wanted: str
    met: bool

    @property
    def row(self) -> str:
        return f"| {self.what} | {self.value:.3f} | {self.wanted} | {'met' if self.met else '**not met**'} |"


def criteria(o: dict) -> list[Criterion]:
    """What is wanted of a model, and whether it is so."""
    one, found = WHAT[o["name"]]["one"], []

    def want(part, what, value, least, strictly=False):
        found.append(Criterion(part, what, value, f"{'>' if strictly else '≥'} {least:g}",
                               value > least if strictly else value >= least))

    if "fill" in o:
        f, fill = o["fill"], "fill compared with the PDAE's DPM" if o["type"] == "DiffAE" else "fill"
        for which, ts, least in (("300_600", "300 … 600", 0.65), ("100_900", "100, 200, … 900", 0.45)):
            want("fill", f"{fill}, mean over t = {ts} (linear reference: {f['linear_mean_' + which]:.3f})",
                 f[f"mean_{which}"], least)
    r, p = o["random_x_T"], o["probe"]
    want("random_x_T", f"random x_T: nearest of {r['candidates']:,} held-out {one}s is the original ({r['cases']:,} "
                       "cases), shape features",
         r["nearest_is_original"]["shape"]["value"], 0.95)
    name, least = (("accuracy", 0.95) if p["measure"] == "accuracy" else (f"mean AUROC over {len(p['names'])} "
                                                                          "attributes", 0.9))
    want("probe", f"linear probe on z: {name} ({o['z_dim']} principal components: "
                  f"{p['mean_' + p['measure'] + '_pca']:.3f})",
         p["mean_" + p["measure"]], least)
    if "samples" in o:
        s = o["samples"]
        want("samples", "samples of the DPM: precision", s["precision"]["value"], 0.6, True)
        want("samples", "samples of the DPM: recall", s["recall"]["value"], 0.6, True)
        near, other = s["distance_to_nearest_training_image"]["value"], s["the_same_for_held_out_images"]["value"]
        found.append(Criterion("samples", f"samples: median distance to the nearest training {one} (held-out {one}s: "
                                          f"{other:.3f})", near,
                               "no smaller", near >= other))
    return found


def card(o: dict, model) -> str:
    """The card as Markdown; every number comes from `o`."""
    w, meta, one = WHAT[o["name"]], o["training"], WHAT[o["name"]]["one"]
    title = TITLES[o["type"]].format(images=w["images"], shape="×".join(map(str, o["images"])), z_dim=o["z_dim"])
    if borrowed(model):
        where = f"on the frozen DPM of `{borrowed(model)}_pdae`, to which it refers"
        title = title.replace("with its frozen DPM inside", where)
    params = ", ".join(f"{k} {v:,}" for k, v in o["parameters"].items())
    note = next((text for start, text in NOTES.items() if o["file"]["sha256"].startswith(start)), "")
    t, stem = meta.get("training", {}), f"{o['name']}_{o['kind']}"
    seen = [f"{o['type']}: {meta.get('images_seen', 0):,} images seen in {t.get('steps', 0):,} "
            f"steps{hours(o, 'model')}; loss weight `{t.get('weight')}`, batch {t.get('batch_size')}, seed "
            f"{t.get('seed')}, precision {t.get('precision')}, torch {meta.get('torch')}."]
    if "dpm_training" in meta:
        d = meta["dpm_training"]
        seen.insert(0, f"DPM: {d['images_seen']:,} images seen in {d['training']['steps']:,} steps{hours(o, 'dpm')}.")
    return f"""# {stem}

{title}.
Parameters: {params}; stored as {o.get('stored_as', 'float16')}, {o['file']['bytes'] / 1e6:.1f} MB.

![{alt(o)}]({stem}.png)

- Data: `{o['name']}` (see `{o['name']}.md`), {o['train_images']:,} training {one}s; every figure below is on the
  {o['test_images']:,} held-out ones, but for what it is compared with.
- Licence of the weights: MIT, like the code. {w['licence']}
- SHA-256 of the file: `{o['file']['sha256']}`

## How it was made

```
{commands(o, model)}
```

{chr(10).join(seen)}
{note}
Numbers and settings in full: `{stem}.json`.

## Quality

| what | measured | wanted | |
|---|---|---|---|
{chr(10).join(c.row for c in criteria(o))}

{bullets(o)}
{attributes(o['probe']) if o['probe']['measure'] == 'auroc' else ''}{fills(o['fill'], o) if 'fill' in o else ''}"""


def bullets(o: dict) -> str:
    """All other figures, one line each."""
    one, r, i, p, f = WHAT[o["name"]]["one"], o["random_x_T"], o["inferred_x_T"], o["probe"], o.get("fill")
    nearest, lines = r["nearest_is_original"], []
    if f:
        lines.append(f"z improves the variational bound by {o['nats']['value']:.0f} nats an image "
                     f"({o['nats']['images']} images).")
        lines.append(f"Fill on {f['images']} *training* {one}s, mean over t = 100 … 900: "
                     f"{f['on_training_images_100_900']:.3f} (held out: {f['mean_100_900']:.3f}).")
    lines.append(f"Reconstruction from z and random x_T ({r['steps']} steps): MSE on [0, 1] {shown(r['mse'], '.4f')}, "
                 f"SSIM {shown(r['ssim'])}. With the inferred x_T ({i['steps']} steps, {i['images']} images): MSE "
                 f"{shown(i['mse'], '.2e')}, SSIM {shown(i['ssim'], '.4f')}.")
    lines.append(f"The nearest held-out {one} is the original: shape features {shown(nearest['shape'])}, pixels "
                 f"{shown(nearest['pixels'])}, class features {shown(nearest['class'])} (they are trained to forget "
                 f"what tells two {one}s of one kind apart).")
    lines.append(f"Linear probes are fitted on the z of {p['train']:,} training {one}s, with L2 by five-fold "
                 f"cross-validation among these. On the {p['test']:,} held-out ones their mean AUROC is "
                 f"{p['mean_auroc']:.3f} (principal components: {p['mean_auroc_pca']:.3f}), their mean average "
                 f"precision {p['mean_average_precision']:.3f} ({p['mean_average_precision_pca']:.3f}). They ship as "
                 f"`{o['name']}_{'' if o['kind'] == 'pdae' else o['kind'] + '_'}probe.safetensors`.")
    if "samples" in o:
        s = o["samples"]
        lines.append(f"{s['count']:,} samples of the DPM ({s['sampler']}), in {s['space']}: precision "
                     f"{shown(s['precision'])}, recall {shown(s['recall'])}; as many training {one}s have "
                     f"{shown(s['precision_of_training_images'])} and {shown(s['recall_of_training_images'])}.")
        lines.append(f"Kernel distance (KID) of the samples from {s['kid']['n'][1]:,} real {one}s: "
                     f"{shown(s['kid'], '.4f')}; of training {one}s {shown(s['kid_of_training_images'], '.4f')}.")
        if "fid" in s:
            lines.append(f"Fréchet distance from the same: {shown(s['fid'], '.2f')}; of training {one}s "
                         f"{shown(s['fid_of_training_images'], '.2f')}.")
        lines.append(f"Samples are {shown(s['ratio'])} times as far from the nearest training {one} as held-out {one}s "
                     "are.")
    space = o["feature_space"]
    known = f"accuracy {space['accuracy']:.3f}" if "accuracy" in space else f"mean AUROC {space['auroc']:.3f}"
    lines.append(f"Feature spaces: the network of `{o['name']}_features.md`, which itself has a held-out {known}.")
    lines.append("In brackets: 95 % intervals.")
    return "\n".join(f"- {line}" for line in lines)


def attributes(p: dict) -> str:
    """A table of the attributes, worst first."""
    order = sorted(range(len(p["names"])), key=lambda i: p["auroc"][i])
    rows = "\n".join(f"| {p['names'][i]} | {p['auroc'][i]:.3f} | {p['auroc_pca'][i]:.3f} | "
                     f"{p['average_precision'][i]:.3f} | {p['accuracy'][i]:.3f} |" for i in order)
    return f"""
Linear probes, the hardest attribute first:

| attribute | AUROC | AUROC of principal components | average precision | accuracy |
|---|---|---|---|---|
{rows}
"""


def fills(f: dict, o: dict) -> str:
    """Fill per t."""
    rows = "\n".join(f"| {t} | {a:.2f} | {b:.2f} |" for t, a, b in zip(f["t"], f["model"], f["linear"]))
    how = (f"Its errors are compared with those of the DPM in `{o['name']}_pdae`, as the PDAE's are. "
           if o["type"] == "DiffAE" else "")
    return f"""
Fill per t, on {f['images']} held-out images, beside the linear-Gaussian reference with {o['z_dim']} principal \
components (of
{f['linear_from_images']:,} training images). {how}

| t | {viz.NAMES[key(o)]} | linear |
|---|---|---|
{rows}
"""


def shown(e: dict, form: str = ".3f") -> str:
    return f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}]"


def hours(o: dict, which: str) -> str:
    took = o.get("histories", {}).get(which, {}).get("hours")
    return "" if took is None else f", in {took * 60:.0f} minutes" if took < 2 else f", in {took:.1f} hours"


def file_facts(path: Path) -> dict:
    """Name, bytes and SHA-256 of a file that ships; of a packed model, of what is packed."""
    return {"name": path.name.replace(PACKED, ".safetensors"), "bytes": len(contents(path)),
            "sha256": file_digest(path)}


def key(o: dict) -> str:
    return {"DiffAE": "diffae", "UNet": "conditional", "AsEpsilon": "conditional"}.get(o["type"], "pdae")


# ---- how it was made -------------------------------------------------------------------------------------------------


def commands(o: dict, model) -> str:
    """The commands that make such a model, with every setting in which it differs from its preset."""
    meta, name, kind = o["training"], o["name"], o["kind"]
    lines, runs = [], f"runs/{kind}"
    shipped = borrowed(model)
    if shipped:
        lines.append(f"pdae train --dpm {shipped} --data {name}{changes('pdae', meta, model)} --out {runs}")
    elif o["type"] == "PDAE":
        lines.append(f"pdae pretrain --data {name}{changes('pretrain', meta.get('dpm_training', {}), model)} --out "
                     "runs/dpm")
        lines.append(f"pdae train --dpm runs/dpm/model.safetensors --data {name}{changes('pdae', meta, model)} --out "
                     f"{runs}")
    else:
        lines.append(f"pdae train --method diffae --data {name}{changes('diffae', meta, model)} --out {runs}")
    dpm = f" --shipped-dpm {shipped}" if shipped else " --dpm runs/dpm/model.safetensors" if o["type"] == "PDAE" else ""
    dpm += " --int8" if o.get("stored_as") == "int8" else ""
    lines.append(f"python scripts/assets/ship.py {runs}/model.safetensors {name}_{kind}{dpm}")
    usual, taken = asdict(Counts()), o.get("made_with", {}).get("counts", {})
    counts = ",".join(f"{k}={v}" for k, v in taken.items() if v is not None and v != usual.get(k))
    lines.append(f"python scripts/assets/evaluate.py {name}{'' if kind == 'pdae' else ' ' + kind}"
                 f"{' --counts ' + counts if counts else ''}")
    return "\n".join(lines)


def borrowed(model) -> str:
    """The shipped model whose DPM this one refers to, or nothing."""
    source = getattr(getattr(model, "dpm", None), "source", None)
    return source.name if source is not None and source.place == "shipped" and source.by_reference else ""


def changes(stage: str, meta: dict, model) -> str:
    """--preset, and --set for what a model has and its preset hasn't."""
    preset = PRESETS.get(meta.get("preset"))
    if preset is None:
        return ""
    names, network = STAGES[stage], model.network
    here = {"prediction": getattr(network, "prediction", "epsilon"),
            "precondition": getattr(model, "precondition", None),
            "form": getattr(model, "form", "difference"),
            "encoder": model.encoder.config, "unet": replace(network.config, z_dim=None)}
    if "training" in meta:
        here[names["train"]] = trained_with(meta)
    actual: Preset = replace(preset, **{field: value for field, value in here.items() if field in names.values()})
    differ = [f" --set {setting}" for setting in differing(actual, preset, stage)]
    return (f" --preset {meta['preset']}" if meta["preset"] != meta.get("data") else "") + "".join(differ)


def trained_with(meta: dict) -> TrainConfig:
    """The training settings in a model's metadata, which an older version may have written."""
    known = {f.name for f in fields(TrainConfig)}
    return TrainConfig(**{k: v for k, v in meta["training"].items() if k in known})


def differing(actual: Preset, preset: Preset, stage: str) -> list[str]:
    """NAME=VALUE of every setting in which one preset differs from another, but for those that change no weight."""
    after, before = (listing(p, STAGES[stage]) for p in (actual, preset))
    return [f"{k}={show(v)}" for k, v in after.items() if v != before[k] and k not in IDLE]


# ---- the picture -----------------------------------------------------------------------------------------------------


def alt(o: dict) -> str:
    rows = ["held-out images", "the same rebuilt from z and random x_T", "rebuilt from z and inferred x_T"]
    rows += ["images that the DPM alone draws"] if o["type"] == "PDAE" else []
    curves = ["fill per t beside the linear reference"] if "fill" in o else []
    curves += ["training loss against images seen"] if o.get("histories") else []
    return f"Rows of {', '.join(rows)}{'; below, ' + ' and '.join(curves) if curves else ''}."


def draw(o: dict, rows: dict[str, torch.Tensor], path: Path) -> None:
    """Rows of images, a pixel a pixel; below them fill per t and the loss. A PNG of at most 60 kB."""
    images = torch.cat(list(rows.values()))
    scale = max(1, 64 // images.shape[-1])
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    sheet = viz.tile(images, len(images) // len(rows)).expand(3, -1, -1).permute(1, 2, 0).numpy()
    below = [part for part in ("fill", "histories") if o.get(part)]
    edge = sheet.shape[0] + 12
    width, height, dpi = 864, edge + (300 if below else 0), 120
    with viz.styled():
        figure = plt.figure(figsize=(width / dpi, height / dpi), dpi=dpi)
        left = (width - sheet.shape[1] + 150) // 2
        figure.figimage(sheet, left, height - 6 - sheet.shape[0])
        for i, text in enumerate(rows):
            y = 6 + (i + 0.5) * sheet.shape[0] / len(rows)
            figure.text((left - 10) / width, 1 - y / height, text.replace(" and ", "\nand "), fontsize=8, ha="right",
                        va="center")
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - edge / height))
        for column, part in enumerate(below):
            ax = figure.add_subplot(1, len(below), column + 1)
            if part == "fill":
                f = o["fill"]
                viz.curves(f["t"], {key(o): f["model"], "linear": f["linear"]}, xlabel="t", ylabel="fill", ax=ax)
                ax.set_ylim(min(0, *f["model"]), 1)
            else:
                for which, h in o["histories"].items():
                    method = key(o) if which == "model" else "dpm"
                    ax.plot([n / 1e3 for n in h["images"]], h["loss"], color=viz.COLORS[method],
                            ls=viz.DASHES.get(method, "-"),
                            label=o.get("label", viz.NAMES[method]))
                ax.set(xlabel="thousand images seen", ylabel="training loss", yscale="log")
                ax.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=viz.CARD, metadata={"Software": None})
        plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    parts = [picture.crop((0, 0, width, edge))] + ([picture.crop((0, edge, width, height))] if below else [])
    for colors in (224, 128, 96, 64, 48, 32, 16):
        # the images' colours and the curves' own ones: neither may take those of the other
        palette = Image.new("P", (1, 1))
        palette.putpalette(sum((_palette(part, n) for part, n in zip(parts, (colors, 32))), []))
        out = io.BytesIO()
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= LARGEST:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(out.getvalue())


def _palette(image: Image.Image, colors: int) -> list[int]:
    return image.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()[: 3 * colors]
