"""Make the peeps in pdae_lite/assets: 12,000 faces at 64×64 with attributes and pose, and true counterfactual pairs.

    pip install -e ".[peeps]"                      # dicebear-core, dicebear-styles, resvg-py, pinned; pillow
    python scripts/assets/make_peeps.py            # peeps_{train,valid,test,edits}.npz.xz; prints what the card states
    python scripts/assets/make_peeps.py --out new  # the same into another folder
    python scripts/assets/make_peeps.py --fresh 10000 fresh.npz   # as many others, for statistics

These packages are needed here only, not by the library. The art is Open Peeps by Pablo Stanley, CC0 1.0.

Every choice comes from numpy's generator seeded by (SEED, stream, number of the face), and goes to DiceBear as the only
allowed value, so its own random numbers decide nothing; labels are read from the options that it reports back. The same
package versions give the same bytes. Faces of the splits, of the fresh ones and of any two numbers are drawn
independently; pose is continuous, so no two agree (the script checks that no image is there twice)."""
import argparse
import hashlib
import io
import json
import lzma
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

ASSETS = Path(__file__).parents[2] / "pdae_lite" / "assets"
SEED = 20221212
SIZE = 64
SPLITS = {"train": 10_500, "valid": 500, "test": 1_000}  # the place is the stream's number in the seed
FRESH = len(SPLITS)
PAIRS = 200
# Pixels interleaved, no alignment, more context: half the size of planes with xz's defaults.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 2}]

DEFINITION = json.loads(files("dicebear_styles").joinpath("open-peeps.json").read_text())
STYLE = Style(DEFINITION)
LEFT_OUT = {
    "expression": {"cyclops", "monster", "lovingGrin1", "lovingGrin2"},  # one eye, three eyes, hearts for eyes
    "facialHair": {"moustache1", "moustache4", "moustache8"},  # hairlines at 64×64; one wider than the picture
    "head": {"bear"},  # an animal costume
}
BACKGROUNDS = ["b6e3f4", "c0aede", "ffd5dc", "ffdfbf", "c7e9b0", "f4f1de", "cfd8dc", "fff3a8"]
LIGHT_HAIR = {"#e8e1e1", "#ecdcbf", "#d6b370", "#f59797", "#b58143"}

# Families of variants: what the attributes mean.
GLASSES = {"glasses", "glasses2", "glasses3", "glasses4", "glasses5"}
SUNGLASSES = {"sunglasses", "sunglasses2"}
BEARDS, GOATEES = {"full", "full2", "full3", "full4"}, {"goatee1", "goatee2"}
HATS, SCARVES = {"hatBeanie", "hatHip"}, {"hijab", "turban"}
BALD, MOHAWKS = {"noHair1", "noHair2", "noHair3"}, {"mohawk", "mohawk2"}
AFROS, BUNS = {"afro", "longAfro", "dreads1", "dreads2"}, {"bun", "bun2", "buns", "grayBun"}
BANGS = {"bangs", "bangs2", "longBangs", "mediumBangs", "mediumBangs2", "mediumBangs3"}
LONG = {"long", "longAfro", "longBangs", "longCurly", "medium2", "medium3", "mediumStraight", "mediumBangs",
        "mediumBangs2", "mediumBangs3", "bangs", "bangs2", "cornrows", "cornrows2"}
SHORT = {"flatTop", "flatTopLong", "grayShort", "pomp", "shaved1", "shaved2", "shaved3", "short1", "short2", "short3",
         "short4", "short5", "twists", "twists2"}
# not always black
TINTED = {"bangs", "grayBun", "grayMedium", "grayShort", "mediumBangs2", "mohawk", "mohawk2", "short4"}
SMILES = {"awe", "calm", "cute", "driven", "eatingHappy", "smile", "smileBig", "smileLOL", "smileTeethGap"}
TEETH = {"concerned", "explaining", "hectic", "rage", "smileBig", "smileLOL", "smileTeethGap"}
CLOSED = {"calm", "concernedFear", "contempt", "eatingHappy", "eyesClosed", "smileBig", "smileLOL", "solemn"}
ANGRY, WORRIED = {"angryWithFang", "rage", "veryAngry"}, {"concerned", "concernedFear", "solemn", "tired"}
WIDE = {"awe", "fear", "hectic", "rage"}

# Edits: (what the face must not wear, options of the image before, options of the image after). In most, the image
# before is the test image as it is; a smile and a hat need a definite start: a sad mouth under like eyes, short hair.
EDITS = {
    "glasses": (("accessories",), {}, {"accessories": "glasses3"}),
    "sunglasses": (("accessories",), {}, {"accessories": "sunglasses"}),
    "facial_hair": (("facialHair", "mask"), {}, {"facialHair": "full"}),
    "mask": (("facialHair", "mask"), {}, {"mask": "medicalMask"}),
    "smile": (("facialHair", "mask"), {"expression": "solemn"}, {"expression": "calm"}),
    "hat": ((), {"head": "short2"}, {"head": "hatHip"}),
}


def draw(stream: int, number: int) -> dict:
    """The choices of one face: variants by component (None: not worn), colours, pose."""
    rng = np.random.default_rng([SEED, stream, number])

    def pick(component: str, **weights: float) -> str:
        names = [v for v in DEFINITION["components"][component]["variants"] if v not in LEFT_OUT.get(component, ())]
        p = np.array([next((w for start, w in weights.items() if v.startswith(start)), 1.0) for v in names])
        return str(rng.choice(names, p=p / p.sum()))

    face = {
        "head": pick("head", hat=3, hijab=2, turban=2, noHair=1.5, mohawk=1.5),  # hats are 2 of 47: make them 1 in 10
        "expression": pick("expression"),
        "accessories": pick("accessories", glasses=1, sunglasses=1.6, eyepatch=2),
        "facialHair": pick("facialHair", goatee=2),
        "mask": pick("mask"),
        "skinColor": str(rng.choice(DEFINITION["colors"]["skin"]["values"])),
        "clothingColor": str(rng.choice(DEFINITION["colors"]["clothing"]["values"])),
        "headContrastColor": str(rng.choice(DEFINITION["colors"]["headContrast"]["values"])),
        "backgroundColor": str(rng.choice(BACKGROUNDS)),
        "rotate": round(float(rng.uniform(-8, 8)), 3),
        "translateX": round(float(rng.uniform(-5, 5)), 3),
        "translateY": round(float(rng.uniform(-5, 5)), 3),
        "scale": round(float(rng.uniform(0.9, 1.08)), 4),
        "flip": str(rng.choice(["none", "horizontal"])),
    }
    wears_accessory, wears_mask, wears_hair = rng.uniform(size=3) < (0.45, 0.12, 0.35)
    if not wears_accessory:
        face["accessories"] = None
    if not wears_mask:
        face["mask"] = None
    if wears_mask or not wears_hair or face["head"] == "hijab":  # a mask hides most of a beard: never both
        face["facialHair"] = None
    return face


def render(face: dict) -> tuple[np.ndarray, dict]:
    """uint8 [3, 64, 64] and the options that DiceBear resolved."""
    options: dict = {"seed": "peeps"}
    for key, value in face.items():
        if key not in DEFINITION["components"]:
            options[key] = value if isinstance(value, float) else [value]
        elif value is None:
            options[f"{key}Probability"] = 0
        else:
            options |= {f"{key}Variant": [value], f"{key}Probability": 100}
    out = Avatar(STYLE, options).to_json()
    for component in DEFINITION["components"]:
        assert out["options"].get(f"{component}Variant") == face[component], (component, face, out["options"])
    png = resvg_py.svg_to_bytes(svg_string=out["svg"], width=SIZE, height=SIZE, skip_system_fonts=True)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    assert pixels.shape == (SIZE, SIZE, 4) and (pixels[..., 3] == 255).all()
    return pixels[..., :3].transpose(2, 0, 1), out["options"]


def attributes(options: dict) -> dict[str, bool]:
    """Binary attributes from the resolved options. What a mask or sunglasses cover counts as absent."""
    head, expression = options["headVariant"], options["expressionVariant"]
    accessory, hair, mask = (options.get(f"{c}Variant") for c in ("accessories", "facialHair", "mask"))
    mouth, eyes = mask is None, accessory not in SUNGLASSES
    skin, tint = options["skinColor"][0], options.get("headContrastColor", [None])[0]
    return {
        "glasses": accessory in GLASSES,
        "sunglasses": accessory in SUNGLASSES,
        "eyepatch": accessory == "eyepatch",
        "facial_hair": hair is not None,
        "full_beard": hair in BEARDS,
        "goatee": hair in GOATEES,
        "moustache": hair is not None and hair.startswith("moustache"),
        "mask": mask is not None,
        "smiling": mouth and expression in SMILES,
        "teeth": mouth and expression in TEETH,
        "angry": (mouth or eyes) and expression in ANGRY,
        "worried": (mouth or eyes) and expression in WORRIED,
        "eyes_closed": eyes and expression in CLOSED,
        "wide_eyes": eyes and expression in WIDE,
        "bald": head in BALD,
        "short_hair": head in SHORT,
        "long_hair": head in LONG,
        "afro": head in AFROS,
        "bun": head in BUNS,
        "bangs": head in BANGS,
        "mohawk": head in MOHAWKS,
        "light_hair": head in TINTED and tint in LIGHT_HAIR,
        "hat": head in HATS,
        "head_covering": head in HATS | SCARVES,
        "dark_skin": skin in ("#ae5d29", "#694d3d"),
        "light_skin": skin in ("#ffdbb4", "#edb98a"),
        "facing_left": options["flip"] == "horizontal",
    }


def pose(options: dict) -> list[float]:
    """Rotation in degrees, shift right and down in % of the side, scale, 1 if mirrored."""
    return [options["rotate"], options["translateX"], options["translateY"], options["scale"],
            options["flip"] == "horizontal"]


def faces(stream: int, n: int) -> dict[str, np.ndarray]:
    """The first n faces of a stream: images [n, 3, 64, 64], labels [n, A], attributes [A], pose [n, 5]."""
    rendered = [render(draw(stream, i)) for i in range(n)]
    labels = [attributes(options) for _, options in rendered]
    return {
        "images": np.stack([image for image, _ in rendered]),
        "labels": np.array([list(row.values()) for row in labels], dtype=np.uint8),
        "attributes": np.array(list(labels[0])),
        "pose": np.array([pose(options) for _, options in rendered], dtype=np.float32),
    }


def edits(test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of the pairs: places in the test split, and what to add (mod 256) to get before and after: mostly
    zeros."""
    stream = list(SPLITS).index("test")
    every = [draw(stream, i) for i in range(SPLITS["test"])]
    for name, (bare, start, change) in EDITS.items():
        chosen = [i for i, face in enumerate(every) if all(face[c] is None for c in bare)
                  and not (face["head"] == "hijab" and "facialHair" in change)][:PAIRS]  # the rule of `draw` again
        assert len(chosen) == PAIRS, (name, len(chosen))
        before = np.stack([render(every[i] | start)[0] for i in chosen])
        after = np.stack([render(every[i] | start | change)[0] for i in chosen])
        assert start or (before == test[chosen]).all()
        yield f"{name}_index", np.array(chosen, dtype=np.int16)
        yield f"{name}_before", before - test[chosen]
        yield f"{name}_after", after - before


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One xz file of arrays; images go in as [n, 64, 64, 4], as xz does best on pixels of four bytes: the last is 0."""
    buffer = io.BytesIO()
    np.savez(buffer, **{k: np.pad(a.transpose(0, 2, 3, 1), ((0, 0),) * 3 + ((0, 1),)) if a.ndim == 4 else a
                        for k, a in arrays.items()})
    path.write_bytes(lzma.compress(buffer.getvalue(), filters=FILTERS))
    print(f"- `{path.name}`: {path.stat().st_size:,} bytes, SHA-256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", nargs=2, metavar=("N", "FILE"),
                        help="write N other faces to FILE (npz) and nothing else")
    parser.add_argument("--out", type=Path, default=ASSETS, metavar="FOLDER",
                        help="where the files go (default: pdae_lite/assets)")
    args = parser.parse_args()
    if args.fresh:
        np.savez(args.fresh[1], **faces(FRESH, int(args.fresh[0])))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {split: faces(stream, n) for stream, (split, n) in enumerate(SPLITS.items())}
    images = [image.tobytes() for arrays in sets.values() for image in arrays["images"]]
    assert len(set(images)) == len(images), "an image is there twice"
    for split, arrays in sets.items():
        write(args.out / f"peeps_{split}.npz.xz", arrays)
    write(args.out / "peeps_edits.npz.xz", dict(edits(sets["test"]["images"])))
    labels = np.concatenate([arrays["labels"] for arrays in sets.values()])
    for name, share in zip(sets["train"]["attributes"], labels.mean(0)):
        print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
