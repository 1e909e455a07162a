"""Draw the pool of chapter 12: codes from a latent DPM, decoded, with the features of the images. Kept in runs/, not in the package.

    python scripts/few_shot_pool.py                     # 10,000 of each model: about ten minutes of a CPU core with bf16
    python scripts/few_shot_pool.py --count 500 --out /tmp/pool

Block i of 250 codes z and noises x_T comes from the generator with seed 1000 · seed + i, so block i is the same however many there
are; models take turns, and a run that was stopped goes on. Each file pool_KIND.safetensors holds z [N, z_dim] and features [N, 64] as
float16, and features of the first `--check` images decoded the slow way, by DDIM in 25 steps and float32, from the same z and x_T.
`scripts/few_shot.py` serves every class, scenario and label count from it.
"""
import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pdae_lite
from pdae_lite import features, speed

BLOCK, SLOW = 250, 25
KINDS = {"pdae": "latent", "diffae": "diffae_latent"}
OUT = Path(__file__).resolve().parent.parent / "runs" / "few_shot"


def drawn(latent, model, block: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes z [250, z_dim] from the latent DPM, as float16 keeps them, and noises x_T."""
    generator = torch.Generator().manual_seed(1000 * seed + block)
    z = latent.sample(BLOCK, generator=generator)
    return z.half().float(), model.noise(BLOCK, generator)


def fill(out: Path, count: int, steps: int = 10, check: int = 100, seed: int = 0) -> None:
    """Draw what the pools in `out` lack of `count` images of each model."""
    out.mkdir(parents=True, exist_ok=True)
    net, start = pdae_lite.load("peeps", "features"), time.process_time()
    models = {kind: (pdae_lite.load("peeps", latent), pdae_lite.load("peeps", kind)) for kind, latent in KINDS.items()}
    fast = {kind: speed.accelerate(model, torch.bfloat16) for kind, (_, model) in models.items()}
    pools = {kind: load_file(path) if (path := out / f"pool_{kind}.safetensors").is_file() else {} for kind in KINDS}
    for block in range(-(-count // BLOCK)):
        for kind, (latent, model) in models.items():
            pool = pools[kind]
            if len(pool.get("z", ())) > block * BLOCK:
                continue
            z, x_T = drawn(latent, model, block, seed)
            images = fast[kind].decode(z, x_T, steps=steps, sampler="dpm_solver").float()
            more = {"z": z.half(), "features": features.extract(net, images.clamp(-1, 1)).values.half()}
            if block == 0 and check:
                slow = model.decode(z[:check], x_T[:check], steps=SLOW)
                pool["slow"] = features.extract(net, slow.clamp(-1, 1)).values.half()
                pool["mse"] = (((slow - images[:check]) / 2).square().flatten(1).mean(1)).float()
            pool |= {k: torch.cat([pool[k], v]) if k in pool else v for k, v in more.items()}
            save_file(pool, out / f"pool_{kind}.safetensors", {"steps": str(steps), "seed": str(seed), "precision": "bf16"})
            print(f"{kind} {len(pool['z'])}, {time.process_time() - start:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="of each model, in blocks of 250 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="evaluations of DPM-Solver++ (default: %(default)s)")
    parser.add_argument("--check", type=int, default=100, help="images that are decoded the slow way too (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    fill(args.out, args.count, args.steps, args.check, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
