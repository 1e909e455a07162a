"""Measure a shipped model that draws new images, and write its card: NAME_KIND.json, .md and .png in pdae_lite/assets.

    python scripts/assets/evaluate_generators.py digits latent --history runs/digits-latent/history.json
    python scripts/assets/evaluate_generators.py digits diffae_latent       # the same for codes of the Diff-AE
    python scripts/assets/evaluate_generators.py digits class               # the class-conditional gradient estimator
    python scripts/assets/evaluate_generators.py digits cond_dpm            # the conditional DPM

Of all: kernel distance, precision and recall of its images against held-out ones, and whether they are copies. Of a
latent DPM: its loss on training and held-out codes. Of models that are told the class: whether their digits are of it,
and how much of the DPM's error the class removes at each t."""
import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from cards import draw, file_facts, shown
from evaluate import thinned
from measurements import likeness
from torch import Tensor

import pdae_lite
from pdae_lite import data, losses, metrics, sampling
from pdae_lite.applications.latent import LatentDPM, latent_codes, sample_images
from pdae_lite.checkpoint import load_model, shipped_file, write_text
from pdae_lite.guidance import ConditionedDenoiser
from pdae_lite.metrics.features import extract
from pdae_lite.pdae import PDAE

TS = list(range(50, 1000, 50))
WHAT = {"latent": "A latent DPM of the PDAE's codes", "diffae_latent": "A latent DPM of the Diff-AE's codes",
        "class": "A class-conditional gradient estimator on the DPM of `digits_pdae`, to which its file refers",
        "cond_dpm": "A DPM that is told the class"}
LABELS = {"latent": "latent DPM", "diffae_latent": "latent DPM", "class": "class-conditional G",
          "cond_dpm": "conditional DPM"}


class Subject:
    """A shipped generator: `draw(n, seed)` gives images [n, C, H, W] and, if it is told them, their labels."""

    def __init__(self, name: str, kind: str, path: Path, steps: int):
        self.name, self.kind, self.path, self.steps = name, kind, path, steps
        self.model = load_model(path)
        self.net = pdae_lite.load(name, "features")
        self.dpm = pdae_lite.load(name, "dpm")
        if isinstance(self.model, LatentDPM):
            self.autoencoder = pdae_lite.load(name, kind.removesuffix("latent").rstrip("_") or "pdae")
        self.train, self.test = (data.shipped_images(name, split, self.dpm.config.image_size)
                                 for split in ("train", "test"))

    @property
    def by_label(self) -> bool:
        return not isinstance(self.model, LatentDPM)

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)
        if not self.by_label:
            return sample_images(self.autoencoder, self.model, n, self.steps, generator=generator), None
        y = torch.arange(n) % 10
        if isinstance(self.model, PDAE):
            return self.model.decode(self.model.encode(y), steps=self.steps, generator=generator), y
        noise = torch.randn(n, *self.test.images.shape[1:], generator=generator)
        return sampling.ddim(ConditionedDenoiser(self.model, y), noise, self.dpm.schedule, steps=self.steps), y

    def denoiser(self, y: Tensor):
        """ε̂ that knows the labels."""
        if isinstance(self.model, PDAE):
            return self.model.trained_denoiser(self.model.encode(y))
        return ConditionedDenoiser(self.model, y)


# ---- measurements -------------------------------------------------------------------------------------------------


def images(s: Subject, n: int) -> dict:
    """The images against held-out ones, beside training images against them."""
    drawn, y = s.draw(n, 7)
    made, test, train = (extract(s.net, x) for x in (drawn, s.test.floats(), s.train.floats()))
    near = metrics.memorisation(made, train, test)
    out = {"count": n, "steps": s.steps, "space": made.space, "copies_ratio": near.ratio.to_dict()}
    out |= likeness(made, train, test, metrics.reference(s.name), n)
    if y is not None:
        with torch.no_grad():
            out["of_the_class"] = metrics.proportion(torch.cat([s.net(x) for x in drawn.split(250)]).argmax(1)
                                                     == y).to_dict()
    return out


@torch.no_grad()
def codes(s: Subject) -> dict:
    """E|ε − ε̂| of training codes and of held-out ones, with the same noise."""
    def loss(images, stats):
        z = latent_codes(s.autoencoder, images, stats=stats)[0].tensors[0]
        g = torch.Generator().manual_seed(0)
        z = z[torch.randint(len(z), (20_000,), generator=g)]
        t = torch.randint(s.model.schedule.T, (len(z),), generator=g)
        return float(losses.latent_loss(s.model, z, t, torch.randn(z.shape, generator=g), s.model.schedule))

    return {"training": loss(s.train, s.model.stats), "held_out": loss(s.test, s.model.stats), "draws": 20_000}


def removed(s: Subject) -> dict:
    """The share of the error of the DPM that ships which is gone when the class is known; and both errors."""
    x, y = s.test.floats(), s.test.labels
    index = iter(y.split(250))
    known = losses.noise_error(lambda v: s.denoiser(next(index)), x, s.dpm.schedule, TS)
    alone = losses.noise_error(lambda v: s.dpm, x, s.dpm.schedule, TS)
    return {"t": TS, "images": len(x), "error": known.tolist(), "error_dpm": alone.tolist(),
            "share": losses.fill(known, alone).tolist()}


# ---- the card -----------------------------------------------------------------------------------------------------


def card(o: dict) -> str:
    """The card as Markdown; every number comes from `o`."""
    t, i = o["training"]["training"], o["images"]
    stem = f"{o['name']}_{o['kind']}"
    lines = [f"{i['count']:,} images in {i['steps']} DDIM steps, in {i['space']}; brackets: 95 % intervals.",
             f"Kernel distance (KID) from {i['kid']['n'][1]:,} real images: {shown(i['kid'], '.4f')}; of as many "
             f"training images {shown(i['kid_of_training_images'], '.4f')}."]
    if "fid" in i:
        lines.append(f"Fréchet distance from the same: {shown(i['fid'], '.2f')}; of training images "
                     f"{shown(i['fid_of_training_images'], '.2f')}.")
    lines += [f"Precision {shown(i['precision'])}, recall {shown(i['recall'])} against as many held-out images; "
              f"training images have {shown(i['precision_of_training_images'])} and "
              f"{shown(i['recall_of_training_images'])}.",
              f"They are {shown(i['copies_ratio'])} times as far from the nearest training image as held-out images "
              "are."]
    if "of_the_class" in i:
        lines.append(f"Share of the class that was asked for, by the network of `{o['name']}_features`: "
                     f"{shown(i['of_the_class'])}.")
    if "codes" in o:
        c = o["codes"]
        lines.append(f"Mean absolute error of the noise, on normalised codes: {c['training']:.4f} for training images, "
                     f"{c['held_out']:.4f} for held-out ones ({c['draws']:,} draws).")
    rows = ""
    if "class" in o:
        share = o["class"]
        note = (" Its network is another one than the DPM's: a part of the difference is that."
                if o["kind"] == "cond_dpm" else "")
        rows = (f"\nThe share of the error of the DPM in `digits_pdae` that is gone, on {share['images']} held-out "
                f"images.{note}\n\n| t | share |\n|---|---|\n"
                + "\n".join(f"| {a} | {b:.3f} |" for a, b in zip(share["t"], share["share"])) + "\n")
    seen = o["training"].get("images_seen", 0)
    return f"""# {stem}

{WHAT[o['kind']]}. {o['parameters']:,} parameters of its own, {o['file']['bytes'] / 1e6:.1f} MB.

![{o['alt']}]({stem}.png)

- Data: `{o['name']}`; licence of the weights: MIT, like the code.
- Trained on {seen:,} {'codes' if 'codes' in o else 'images'} in {t['steps']:,} steps of {t['batch_size']}, seed \
{t['seed']}, learning rate
  {t['lr']:g}, EMA {t['ema']}, torch {o['training'].get('torch')}. All settings: `{stem}.json`. Command: `make \
weights` holds it.
- SHA-256 of the file: `{o['file']['sha256']}`

## Quality

{chr(10).join(f'- {line}' for line in lines)}
{rows}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("digits", "peeps"))
    parser.add_argument("kind", choices=tuple(WHAT))
    parser.add_argument("--file", type=Path, help="the model file (default: the shipped one)")
    parser.add_argument("--out", type=Path, default=data.ASSETS,
                        help="where to write (default: beside the shipped models)")
    parser.add_argument("--history", type=Path, help="history.json of the run that made the model")
    parser.add_argument("--count", type=int, default=500, help="images to draw (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default: %(default)s)")
    args = parser.parse_args()
    stem = f"{args.name}_{args.kind}"
    path, start = args.file or shipped_file(args.name, args.kind), time.time()
    s = Subject(args.name, args.kind, path, args.steps)
    own = [p for k, p in s.model.named_parameters() if not (isinstance(s.model, PDAE) and k.startswith("dpm."))]
    out = {"name": args.name, "kind": args.kind, "type": type(s.model).__name__, "training": s.model.metadata,
           "parameters": sum(p.numel() for p in own),
           "file": file_facts(path)}
    out["images"] = images(s, min(args.count, len(s.test)))
    out |= {"class": removed(s)} if s.by_label else {"codes": codes(s)}
    target = args.out / f"{stem}.json"
    before = json.loads(target.read_text()) if target.is_file() else {}
    if args.history or before.get("file") == out["file"]:
        out["histories"] = {"model": thinned(args.history)} if args.history else before.get("histories", {})
    columns = ", a column for each digit" if s.by_label else ""
    out |= {"alt": f"Images that the model drew{columns}, and its training loss against images seen.",
            "label": LABELS[args.kind]}
    out["made_with"] = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu",
                        "count": args.count, "steps": args.steps, "date": time.strftime("%Y-%m-%d")}
    write_text(target, json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    width = 10 if args.name == "digits" else 8
    shown, _ = s.draw(3 * width, 1)
    draw(out, {f"drawn, {i + 1}": part for i, part in enumerate(shown.split(width))}, args.out / f"{stem}.png")
    write_text(args.out / f"{stem}.md", card(out))
    print(f"{args.out / stem}.md, {time.time() - start:.0f} s: KID {out['images']['kid']['value']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
