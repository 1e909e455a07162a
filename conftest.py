"""Notebooks under nbval: what a claim measured is left out of the comparison, the claim itself is not."""
MEASURED = {r' <span class="measured">.*?</span>': "", r"(?m)^(✓ .*) \[[^\[\]]*\]$": r"\1"}


def pytest_collection_modifyitems(items):
    for item in items:
        getattr(item.parent, "sanitize_patterns", {}).update(MEASURED)
