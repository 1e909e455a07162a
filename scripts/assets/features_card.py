"""The cards of the feature networks, as Markdown, from what make_features.py measured."""
from math import prod


def card(name: str, o: dict) -> str:
    """The card as Markdown; every number comes from `o`."""
    t, c, q, f = o["training"], o["config"], o["held_out"], o["file"]
    body = faces_known(q).rstrip() if c["multi_label"] else f"- Held-out accuracy: {interval(q['accuracy'], '.3f')}."
    taught = ("the 27 attributes, the pose and a 4×4 thumbnail (for the colours), mirrored and shifted at random"
              if c["pose"]
              else "the class, under light affine distortion, never mirrored")
    widths, strides = (", ".join(map(str, c[k])) for k in ("channels", "strides"))
    shape = c["channels"][-1] * (c["image_size"] // prod(c["strides"])) ** 2
    return f"""# {name}_features

A small convolutional network whose activations are the feature space in which images of {name} are compared.
`pdae_lite.load("{name}", kind="features")`; `features.extract(net, images, layer)`.

- Architecture: {len(c['channels'])} convolutions ({widths} channels, strides {strides}; 5×5, then 3×3) with \
BatchNorm and ReLU,
  a linear layer to {c['width']} with ReLU and, in training, dropout {c['dropout']}, a linear layer to \
{len(c['labels'])} logits.
  {o['parameters']:,} parameters, stored as float16.
- "class" features: the {c['width']} activations before the logits, scaled to unit variance over the training images
  ({o['dead_features'] or 'none'} of them dead). For FID, KID, precision, recall, memorisation.
- "shape" features: the last convolution's {shape:,} activations. For which image an image is nearest to.
- These are not Inception's features, and `feature_distance` in them is not LPIPS: compare no figure made with them \
with one
  from a paper.
- Learned on the {t['images']:,} training images of `{t['data']}`: {taught}.
- Command: `{t['command']}`; {t['steps']:,} steps, batch {t['batch_size']}, AdamW {t['lr']:g} in one cycle, seed \
{t['seed']},
  torch {t['torch']}, Python {o['python']}, one CPU core with bf16.
- Licence: MIT, like the code; for the data see `{name}.md`.
- File: `{f['name']}`, {f['bytes']:,} bytes, SHA-256 `{f['sha256']}`

## Quality, on {o['held_out_images']:,} held-out images

{body}
{fresh_faces(o['reference']) if 'reference' in o else ''}\
{distances(name, o['sensitivity']) if 'sensitivity' in o else ''}
All figures in full: `{name}_features.json`.
"""


def faces_known(q: dict) -> str:
    rows = "\n".join(f"| {name} | {value:.3f} | {q['accuracy'][name]:.3f} |" for name, value in q["auroc"].items())
    p = q["pose_mean_absolute_error"]
    return f"""- AUROC over the attributes: {q['auroc_mean']:.3f} on average, {q['auroc_least']:.3f} at least.
- Pose, mean absolute error: rotation {p['rotate']:.2f}°, shift right {p['right']:.2f} and down {p['down']:.2f} % of \
the side,
  scale {p['scale']:.3f}.
- A linear map of the class features explains {q['thumbnail_variance_explained']:.1%} of the variance of the 4×4 \
thumbnails.

| attribute | AUROC | accuracy |
| --- | ---: | ---: |
{rows}
"""


def fresh_faces(r: dict) -> str:
    return f"""
## Reference: {r['faces']:,} fresh faces

Class features, as float16, and attributes of {r['faces']:,} faces drawn like the data (stream 3 of the seed), of \
which none is in the
splits or the edits; `metrics.reference("peeps")`. A distribution metric against them holds no image that a model was \
trained on.

- Commands: `python scripts/assets/make_peeps.py --fresh {r['faces']} fresh.npz`,
  `python scripts/assets/make_features.py reference fresh.npz`
- File: `{r['file']['name']}`, {r['file']['bytes']:,} bytes, SHA-256 `{r['file']['sha256']}`
- SHA-256 of the pixels, uint8 [{r['faces']}, 3, 64, 64]: `{r['sha256_of_pixels']}`
"""


def distances(name: str, rows: dict) -> str:
    what = ("the 1,000 test faces from the reference" if name == "peeps" else "500 training digits from the 500 "
                                                                              "held-out ones")
    has_fid = all("fid" in row for row in rows.values())
    head = "| images | KID |" + (" FID |" if has_fid else "") + " precision | recall |"
    lines = [f"| {kind} | {interval(row['kid'])} | " + (f"{interval(row['fid'])} | " if has_fid else "")
             + f"{row['precision']['value']:.3f} | {row['recall']['value']:.3f} |" for kind, row in rows.items()]
    return f"""
## What the distances notice

Of {what}, as they are and spoilt{'' if has_fid else '; too few for a Fréchet distance'}.
Precision and recall (k = 3) are against as many real images.

{head}
| --- {'| ---: ' * (head.count('|') - 2)}|
""" + "\n".join(lines) + "\n"


def interval(e: dict, form: str = ".3g") -> str:
    return f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}]"
