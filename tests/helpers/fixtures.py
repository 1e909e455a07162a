"""Files of tests/data, where the large ones are stored as .xz, by `pdae_lite.storage.pack`."""
import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from pdae_lite.storage import unpack

DATA = Path(__file__).parents[1] / "data"


@functools.cache
def fixture(name: str) -> Path:
    """A folder of tests/data by its name, with its .xz files unpacked: once a process, into a folder that goes with
    it."""
    folder = Path(tempfile.mkdtemp(prefix="pdae_lite_fixtures_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unpacked = folder / name
    unpacked.mkdir(parents=True)
    for path in sorted((DATA / name).iterdir()):
        if path.suffix == ".xz":
            (unpacked / path.stem).write_bytes(unpack(path.read_bytes()))
        else:
            shutil.copyfile(path, unpacked / path.name)
    return unpacked
