"""A notebook says once where it computes, and every model, batch and draw names its device."""
import ast

import pytest
from chapters import CHAPTERS
from visible_code import plain

DRAWS = {"randn", "rand", "randint", "randperm", "normal", "multinomial", "bernoulli"}


def nameless(source: str) -> list[str]:
    """Calls that load, read or draw without naming a device, and draws without a generator."""
    tree, found = ast.parse(plain(source)), []
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    moved = {id(n.func.value) for n in calls if n.func.attr == "to"}
    for call in calls:
        owner, name = ast.unparse(call.func.value), call.func.attr
        draws = owner == "torch" and name in DRAWS
        given = {k.arg for k in call.keywords}
        if (draws or name == "floats"
            or (owner, name) == ("pdae_lite", "load")) and "device" not in given and id(call) not in moved:
            found.append(ast.unparse(call))
        if draws and "generator" not in given:
            found.append(f"{ast.unparse(call)} (no generator)")
    return found


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_load_and_draw_names_its_device(name):
    code = "\n".join(plain(c.source) for c in CHAPTERS[name].cells if c.cell_type == "code")
    assert code.count("pdae_lite.best_device()") == 1 and "use_accelerator" not in code
    assert nameless(code) == []


@pytest.mark.parametrize("line", ["x = pdae_lite.load('digits')", "x = data.digits('test').floats()",
                                  "x = torch.randn(3, generator=g)", "x = torch.rand(3, device=device)"])
def test_what_names_no_device_is_found(line):
    assert nameless(line)


@pytest.mark.parametrize("line", ["x = pdae_lite.load('digits', device=device)", "x = torch.randn(3, "
                                                                                 "generator=g).to(device)"])
def test_what_names_one_is_not(line):
    assert not nameless(line)
