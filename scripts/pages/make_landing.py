"""Make book/_landing.html, the sliders of the first page: attributes of drawn faces, edited by the shipped model.

    python scripts/pages/make_landing.py

Nobody chose the faces: they are the first four of the test set that lack the attribute and have a true counterfactual.
Every frame is one scale of the edit (Fig. 8 of the paper), along the difference of means of chapter 10, decoded from
the noise that was inferred with the unedited code."""
import functools
from pathlib import Path

import torch

import pdae_lite
from pdae_lite import data, viz
from pdae_lite.applications import attributes
from pdae_lite.checkpoint import write_text

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "_landing.html"
# attribute → what the slider is called
EDITS = {"sunglasses": "sunglasses", "mask": "face mask", "facial_hair": "beard"}
SCALES = (-0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FACES, STEPS, CODES = 4, 30, 4000


@functools.cache
def means() -> attributes.LinearProbe:
    """A probe whose weights point from the mean code without an attribute to that with it: so does a strong penalty."""
    train = data.peeps("train", size=32)
    codes = attributes.encode_all(pdae_lite.load("peeps"), train.images[:CODES])
    return attributes.LinearProbe.fit(codes, train.labels[:CODES], train.attributes, l2=10.0)


@torch.no_grad()
def frames(edit: str, scales=SCALES) -> torch.Tensor:
    """[scales, FACES, 3, 32, 32] in [−1, 1]: the faces with the attribute moved by each scale."""
    pdae = pdae_lite.load("peeps")
    faces = data.to_float(data.peeps_counterfactuals(edit, size=32)[0][:FACES])
    z = pdae.encode(faces)
    x_T = pdae.invert(faces, z, steps=STEPS)
    return torch.stack([pdae.decode(attributes.edit(z, means(), edit, s), x_T, steps=STEPS) for s in scales])


def page() -> str:
    cards = []
    for edit, name in EDITS.items():
        slider = viz.slider([*frames(edit)], [f"{s:+.1f}" if s else "as it was" for s in SCALES], id=f"landing-{edit}",
                            label=name, alt=f"Four drawn faces, edited along the direction of “{name}”", scale=3,
                            start=SCALES.index(0.0), columns=2)
        cards.append(slider.html)
    return '<div class="landing">\n' + "\n".join(cards) + "\n</div>\n"


if __name__ == "__main__":
    write_text(TARGET, page())
