"""Types: the method is clean to a type checker, and those who use the package get its types."""
import importlib.resources
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(*files):
    return subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", "/dev/null", *files], cwd=ROOT,
                          capture_output=True, text=True, timeout=600)


def test_the_method_is_clean():
    done = check()
    assert done.returncode == 0, done.stdout


def test_a_wrong_type_is_seen(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from pdae_lite.schedule import NoiseSchedule\n\nT: str = NoiseSchedule.linear().T\n")
    done = check(wrong)
    assert done.returncode == 1 and 'expression has type "int", variable has type "str"' in done.stdout, done.stdout


def test_the_package_is_typed_for_its_users():
    assert (importlib.resources.files("pdae_lite") / "py.typed").is_file()
