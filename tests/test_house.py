"""The house keeps its rules (tests/helpers/house.py), and each rule sees what breaks it."""
import subprocess
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).parents[1]
# Not yet: package_is_small, scripts_do_not_grow, repository_is_light.
HOLD = [house.every_room_is_planned, house.imports_run_downwards, house.no_circles, house.imports_stand_at_the_top,
        house.only_commands_speak, house.private_names_stay_home, house.files_are_short, house.lines_are_short,
        house.method_is_small]


@pytest.mark.parametrize("rule", HOLD, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule):
    assert not rule(ROOT)


TIDY = {
    "pdae_lite/__init__.py": "from importlib import import_module\n\nfrom .pdae import PDAE\n\n__version__ = '1'\n\n\n"
                             "def __getattr__(name):\n    return import_module(f'.{name}', __name__)\n",
    "pdae_lite/schedule.py": "def beta(t):\n    return _table[t]\n\n\n_table = [0.1]\n",
    "pdae_lite/networks/__init__.py": "",
    "pdae_lite/networks/unet.py": "from ..schedule import beta\n\n\nclass UNet:\n    def __init__(self):\n        "
                                  "self._seen = beta(0)\n",
    "pdae_lite/networks/classifier.py": "from .unet import UNet\n",
    "pdae_lite/pdae.py": "from .networks import unet\n\n\ndef PDAE():\n    return unet.UNet()\n",
    "pdae_lite/evaluation/__init__.py": "",
    "pdae_lite/evaluation/doctor.py": "from ..pdae import PDAE\n",
    "pdae_lite/viz/__init__.py": "def sliders():\n    from .sliders import explorer\n    return explorer\n",
    "pdae_lite/viz/sliders.py": "import ipywidgets\n\nfrom ..pdae import PDAE\n",
    "pdae_lite/commands/__init__.py": "",
    "pdae_lite/commands/main.py": "import argparse\n\n\ndef main():\n    from . import info\n    print(info)\n    "
                                  "raise SystemExit(2)\n",
    "pdae_lite/commands/info.py": "from .. import __version__\nfrom ..evaluation import doctor\n",
    "scripts/page.py": "print(1)\n",
}


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    return root


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_a_tidy_house_breaks_no_rule(rule, tmp_path):
    assert rule(build(tmp_path, TIDY)) == []


INSIDE = "def f():\n    from ..schedule import beta\n"
PLANTED = [  # the rule, files of the package, what the rule says
    ("every_room_is_planned", {"attic.py": ""}, "attic: not in the plan"),
    ("imports_run_downwards", {"schedule.py": "from .pdae import PDAE\n"},
     "schedule.py:1 (schedule) uses pdae, which comes later"),
    ("imports_run_downwards", {"schedule.py": "import pdae_lite.pdae\n"}, "(schedule) uses pdae, which comes later"),
    ("imports_run_downwards", {"pdae.py": "def f():\n    from pdae_lite.commands import info\n"},
     "pdae.py:2 (pdae) uses commands"),
    ("imports_run_downwards", {"networks/unet.py": "from .. import pdae\n"}, "(networks) uses pdae"),
    ("imports_run_downwards", {"networks/unet.py": "from .. import PDAE\n"}, "takes PDAE from the front door"),
    ("imports_run_downwards", {"viz/sliders.py": "from ..evaluation import doctor\n"}, "(viz) uses evaluation"),
    ("no_circles", {"networks/unet.py": "from .classifier import y\n"},
     "circle of files: networks.classifier, networks.unet"),
    ("no_circles", {"networks/unet.py": "def f():\n    from . import classifier\n"},
     "circle of files: networks.classifier"),
    ("no_circles", {"losses.py": "from .networks import unet\n", "networks/blocks.py": "from ..losses import x\n"},
     "circle of rooms: losses, networks"),
    ("imports_stand_at_the_top", {"networks/unet.py": INSIDE}, "unet.py:2 imports schedule"),
    ("imports_stand_at_the_top", {"networks/unet.py": "f = lambda: __import__('pdae_lite.pdae')\n"},
     "loads a module by its name"),
    ("imports_stand_at_the_top", {"commands/info.py": INSIDE}, "info.py:2 imports schedule"),
    ("imports_stand_at_the_top", {"commands/main.py": INSIDE}, "main.py:2 imports schedule"),
    ("imports_stand_at_the_top", {"commands/main.py": INSIDE.replace(".schedule", ".commands.info") * 26},
     "28 imports of our own"),
    ("only_commands_speak", {"schedule.py": "print(1)\n"}, "schedule.py:1 calls print"),
    ("only_commands_speak", {"schedule.py": "from tqdm.auto import tqdm\ntqdm.write('')\n"},
     "schedule.py:2 calls tqdm.write"),
    ("only_commands_speak", {"schedule.py": "import sys\nsys.exit()\n"}, "calls sys.exit"),
    ("only_commands_speak", {"schedule.py": "import sys\nname = sys.argv[1]\n"}, "reads sys.argv"),
    ("only_commands_speak", {"schedule.py": "def f():\n    import argparse\n"}, "schedule.py:2 parses arguments"),
    ("only_commands_speak", {"schedule.py": "raise SystemExit\n"}, "raises the command line's SystemExit"),
    ("only_commands_speak", {"pdae.py": "from .commands import info\nraise info.UsageError('x')\n"},
     "the command line's info.UsageError"),
    ("private_names_stay_home", {"pdae.py": "from .schedule import _table\n"}, "pdae.py:1 takes _table from schedule"),
    ("private_names_stay_home", {"pdae.py": "from . import schedule\nt = schedule._table\n"},
     "uses schedule._table of schedule"),
    ("private_names_stay_home", {"pdae.py": "def f(unet):\n    return unet._seen\n"},
     "pdae.py:2 uses unet._seen of networks.unet"),
    ("private_names_stay_home", {"_hidden.py": "", "pdae.py": "from ._hidden import x\n"}, "takes x from _hidden"),
    ("files_are_short", {"schedule.py": "\n" * 301}, "schedule.py: 301 lines"),
    ("lines_are_short", {"schedule.py": f"# {'x' * 119}\n"}, "schedule.py:1: 121 characters"),
    ("package_is_small", {f"data/d{i}.py": "\n" * 300 for i in range(29)}, "lines; at most 8600"),
    ("package_is_small", {"schedule.py": "#" * 420_000}, "characters; at most 420000"),
    ("method_is_small", {f"training/t{i}.py": "\n" * 300 for i in range(9)}, "the method has"),
    ("scripts_do_not_grow", {"../scripts/pages/more.py": "\n" * house.SCRIPT_LINES}, "scripts has"),
    ("repository_is_light", {"../weights.bin": "x" * 2**21}, "git tracks 2.0 MiB"),
]


@pytest.mark.parametrize("rule, files, message", PLANTED, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTED)])
def test_what_breaks_a_rule_is_seen(rule, files, message, tmp_path, monkeypatch):
    monkeypatch.setattr(house, "MOST_MIB", 1)
    planted = {f"pdae_lite/{name}": text for name, text in files.items()}
    broken = getattr(house, rule)(build(tmp_path, TIDY | planted))
    assert any(message in line for line in broken), broken


def test_every_rule_has_something_planted():
    assert {p[0] for p in PLANTED} == {rule.__name__ for rule in house.RULES}
