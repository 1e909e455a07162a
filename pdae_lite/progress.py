"""Progress bars, shown unless the caller or the environment variable TQDM_DISABLE says no (tqdm's notebook bar ignores
it)."""
import os

from tqdm.auto import tqdm


def progress_bar(*args, show: bool, **options):
    """A tqdm bar that vanishes when it is done; `show` False makes it silent."""
    return tqdm(*args, disable=not show or bool(os.environ.get("TQDM_DISABLE")), leave=False, **options)
