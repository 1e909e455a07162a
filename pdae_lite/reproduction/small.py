"""The paper's tables in small, as records that grow: what is complete in one isn't measured again."""
import torch

from .. import data, metrics
from ..metrics.features import FeatureNet
from ..progress import progress_bar
from . import published, table_2, table_3
from .partial import Kept
from .protocol import Distance, compare, lpips_distance, rebuilt
from .subject import Subject

BLOCK = 250  # samples between two records of Table 2
FIRST = 4  # images of Table 1 whose errors are stored, to be computed again
TABLE_1 = ("held-out images rebuilt in T steps by the library's defaults; the inferred x_T in T more; first: MSE of "
           "the first images")
TABLE_2 = ("samples i of all methods from x_T = counter_rng.normal(seed, 0, i), z_T = counter_rng.normal(seed, 1, i); "
           "PDAE with the plain DPM where t < off_last * 1000; DDIM; cost in GFLOP of an image; first: mean features "
           "of the first samples; differences are paired")
TABLE_3 = ("few-shot conditional generation; lists are over draws of labels; 'half' is half of a 95 % interval; n: "
           "images accepted")


def shape_distance(net: FeatureNet) -> Distance:
    """Distance of two images in the shape features of a small network. Not LPIPS."""
    return Distance(f"distance in {net.config.name} shape features",
                    lambda a, b: (net.features(a, "shape") - net.features(b, "shape")).norm(dim=1))


def latent_size(s: Subject, row: str) -> int:
    """Numbers that a row of Table 1 rebuilds an image from."""
    c, h, w = s.shape
    return ("inferred" in row) * c * h * w + (0 if row.startswith("DDIM") else s.some.z_dim)


def reconstruction(kept: Kept, s: Subject, steps: list[int], count: int = 50, seed: int = 0, batch_size: int = 50,
                   lpips: bool = False) -> dict:
    """Table 1, of `count` images, for each number of steps."""
    kept.settings |= {"steps": steps, "images": count, "lpips": lpips}
    if (before := kept.before()) is not None:
        return before
    distance, tables = lpips_distance() if lpips else shape_distance(s.net), {}
    images = data.shipped_images(s.data, "test", s.shape[1])
    columns = {"SSIM": metrics.ssim, distance.name: distance.function, "MSE": metrics.mse}
    for T in steps:
        partial = kept.partial(T=T)
        rows = compare(images, count, s.some.device, lambda x_0, x_T: rebuilt(x_0, x_T, T, s.pdae, s.diffae), columns,
                       seed, batch_size, partial, True, f"Table 1, T = {T}")
        partial.done()
        tables[str(T)] = {
            row: {"latent": latent_size(s, row)} | {k: table_2.numbers(e) for k, e in rows[row].items()}
            | {"first": [float(f"{v:.6g}") for v in partial.tensors[f"{row}|MSE"][:FIRST]]}
            for row in published.TABLE_1 if row in rows}  # files of tensors keep no order
    return kept.write(kept.record(TABLE_1, metric=distance.name, is_lpips=lpips, measured=tables,
                                  paper=published.table_1_by_metric()))


def better_samples(kept: Kept, s: Subject, steps: list[int], count: int = 1000, seed: int = 0, batch_size: int = 50,
                   dtype: torch.dtype | None = None) -> dict:
    """Table 2, of `count` samples of each cell. Lower precision is checked against float32.

    Raises:
        ValueError: no latent DPM.
    """
    if s.latent is None and s.diffae_latent is None:
        raise ValueError("Table 2 wants a latent DPM: a file of `pdae latent`")
    kept.settings |= {"steps": steps}
    before = kept.before()
    if before is not None and before["samples"] >= count:
        return before
    wanted, equal = table_2.cells(s, steps)
    names, real = [cell.name for cell in wanted], metrics.reference(s.data)
    partial, record = kept.partial(but="steps"), {}  # samples serve any choice of T
    bar = progress_bar(total=count, desc="Table 2", show=True)
    bar.update(partial.count(names))

    def report(done: int) -> None:
        nonlocal record
        bar.update(done - bar.n)
        if done % BLOCK == 0 or done == count:
            found = table_2.summary(wanted, equal, {k: partial.tensors[k][:done] for k in names}, real, steps)
            if dtype is not None:
                check = table_2.precision_check(s, wanted, partial, real, min(100, done), seed, batch_size)
                found["precision_check"] = check
            record = kept.write(kept.record(TABLE_2, gflop=table_2.gflop(s), **found, paper=published.TABLE_2))

    if partial.count(names) >= count:
        report(count)
    table_2.collect(table_2.fast(s, dtype), wanted, count, partial, seed, batch_size, report)
    bar.close()
    partial.done()
    return record


def few_shot(kept: Kept, s: Subject, pool: int | None = None, seed: int = 0, dtype: torch.dtype | None = None,
             quick: bool = False) -> dict:
    """Table 3, on pools of `pool` codes (10,000); `quick`: few of everything, for a try.

    Raises:
        ValueError: a pool that is too small; models that don't suit it.
    """
    kinds, attributes = table_3.generators(s), table_3.ATTRIBUTES[:1] if quick else table_3.ATTRIBUTES
    pool, draws = pool or (table_3.BLOCK if quick else 10_000), 2 if quick else table_3.DRAWS
    if pool < table_3.BLOCK:
        raise ValueError(f"pools of {pool} codes; Table 3 wants pools of at least {table_3.BLOCK}")
    partial = kept.partial()
    kept.settings |= {"pool": pool, "draws": draws}
    record = kept.before()
    if record is not None and all(name in record["attributes"] for name in attributes):
        return record
    table_3.fill(s, pool, partial, seed, dtype, progress=True)
    bench = table_3.Bench(s, partial, pool)
    if record is None:
        decoded = (f"DPM-Solver++, {table_3.STEPS} evaluations, {kept.settings['dtype']}; slow: DDIM, {table_3.SLOW} "
                   "evaluations, float32")
        record = kept.record(
            TABLE_3, images=table_3.FOR_FID, space=bench.space, labels=table_3.LABELS, unlabelled=table_3.UNLABELLED,
            decoded=decoded, check=table_3.checks(bench), held_out=table_3.on_real_codes(bench, draws),
            kinds=list(kinds), attributes={})
    for name in progress_bar(attributes, show=True, desc="attributes"):
        if name not in record["attributes"]:
            record["attributes"][name] = table_3.measure(bench, name, draws)
            kept.write(record)
    partial.done()
    return record
