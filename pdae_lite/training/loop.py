"""One visible training loop, on accelerate: CPU, one GPU, or many by `accelerate launch` / `torchrun`.

Everything random is keyed by (seed, step, sample index), so a run that was killed and started again, or split over
several processes, sees the same data, timesteps and noise."""
import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import counter_rng
from ..checkpoint import check_references, describe, save_model, write_text
from ..data.items import fingerprint
from ..progress import progress_bar
from ..schedule import NoiseSchedule
from ..warning import PDAEWarning
from .batches import Batches
from .config import TrainConfig, TrainResult
from .resume import Average, RunState, TrainingError, first_values, frozen_digest, guard, stop_after_step

SKIPS_ALLOWED = 10  # non-finite batches in a row before the run stops


class Objective(nn.Module):
    """Model and loss as one module, so that DDP and torch.compile see a single forward."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None) -> Tensor:
        return self.loss(self.model, x_0, t, eps, y)


def default_loss(model: nn.Module, schedule: NoiseSchedule, config: TrainConfig) -> Callable:
    """The model's own `training_loss` with the weight that the config names, or the model's `default_weight`."""
    weight = schedule.loss_weight(config.weight or str(model.default_weight), config.gamma)
    weight = weight.to(next(model.parameters()).device)  # once: a copy in every step would make a GPU wait
    return lambda m, x_0, t, eps, y: m.training_loss(x_0, t, eps, y, schedule, weight)


def train(model: nn.Module, data, config: TrainConfig | None = None, *, schedule: NoiseSchedule | None = None,
          out: str | Path | None = None, loss: Callable | None = None, metadata: dict | None = None,
          progress: bool = True, callback: Callable[[int, nn.Module], dict | None] | None = None,
          **overrides) -> TrainResult:
    """Train a model in place; at the end it holds its EMA weights.

    Args:
        model: anything with a `training_loss` and a `default_weight`: a `PDAE` (its DPM stays frozen), a noise
            predictor such as `UNet`, a `DiffAE`, a `LatentDPM`, a `NoisyClassifier`.
        data: a data set of images, or of (image, label); uint8, or float in the model's range.
        config: a `TrainConfig`; `overrides` replace its fields by name, so ``train(pdae, data, steps=500)`` works.
        schedule: the noise schedule; a PDAE brings its own.
        out: folder for `model.safetensors` (the EMA model) and `checkpoints/`; None: nothing is written. The same call
            again resumes from the last good checkpoint. Ctrl-C saves the step that is being made, twice stops at once.
        loss: (model, x_0, t, eps, y) -> scalar; None: `default_loss`.
        callback: called at every log step with (step, model), the model in eval mode and with the weights of that step;
            a dict that it returns joins the history.

    Raises:
        TrainingError: the loss stays non-finite, the output can't be written, or `out` holds another run.
    """
    config = replace(config or TrainConfig(), **overrides)
    result = TrainResult(model)
    with stop_after_step() as asked:
        for result in train_in_turns(model, data, config, schedule, out, loss, metadata, progress, callback, asked):
            pass
    return result


def join_processes() -> None:
    """Under torchrun: find the other processes, or raise a TrainingError. Where there is no GPU, accelerate must be
    told so, or else each process would train by itself, all into the same folder."""
    if "LOCAL_RANK" not in os.environ:
        return
    from accelerate import PartialState

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or device.type == "mps":  # one MPS device can't be shared
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    processes = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true").num_processes
    if processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise TrainingError(f"{os.environ['WORLD_SIZE']} processes were started, but accelerate finds {processes}")


def train_in_turns(model: nn.Module, data, config: TrainConfig, schedule: NoiseSchedule | None = None,
                   out: str | Path | None = None, loss: Callable | None = None, metadata: dict | None = None,
                   progress: bool = False, callback: Callable | None = None,
                   asked: Sized = ()) -> Iterator[TrainResult]:
    """`train` as a generator that rests after each log step and yields the result so far, so that several runs can take
    turns in one process. Once `asked` isn't empty, the step is saved, and it ends."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    schedule = getattr(model, "schedule", None) if schedule is None else schedule
    if schedule is None:
        raise ValueError("schedule is missing; a noise predictor needs one, for example NoiseSchedule.linear()")
    join_processes()
    AcceleratorState._reset_state()  # lets one process train twice with different precision
    accelerator = Accelerator(mixed_precision=config.precision)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size % (world * config.accumulate):
        raise ValueError(f"batch_size={config.batch_size} doesn't divide by {world} processes × {config.accumulate} "
                         "micro-batches")
    micro = config.batch_size // (world * config.accumulate)

    model.to(device).train()
    schedule = schedule.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    trainable: nn.Module = getattr(model, "trainable", lambda: nn.ModuleDict({"model": model}))()
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    ema = Average(trainable, config.ema)

    run = {}
    if out is not None:  # what can't be saved should say so now, not after hours
        json.dumps(metadata or {})
        check_references(model)
        run = {"model": describe(model), "schedule": schedule.to_config(), "images": len(data),
               "frozen": frozen_digest(model), "first": first_values(data), "data": fingerprint(data)}
    main = accelerator.is_main_process
    state = RunState(trainable, ema, optimizer, Path(out) if out is not None else None, config, main, run)
    step, history, window = state.resume()
    objective = Objective(model, loss or default_loss(model, schedule, config))
    schedules = [(name, m) for name, m in objective.named_modules() if isinstance(m, NoiseSchedule)]
    tables = [f"{name}.{b}" for name, m in schedules for b, _ in m.named_buffers()]  # constants: nothing to exchange
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, tables)
    objective = accelerator.prepare_model(objective)
    compute = torch.compile(objective, dynamic=False) if config.compile else objective
    writer = None
    if config.tensorboard and out is not None and main:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(Path(out) / "tensorboard"))
    # Of each micro-batch: where its samples are in the whole batch.
    places = [(torch.arange(micro) + (m * world + rank) * micro).to(device) for m in range(config.accumulate)]
    batches = Batches(data, config, device, places, step, getattr(model, "data_range", (-1.0, 1.0)))

    def mean(value: Tensor) -> Tensor:  # over all processes
        return accelerator.reduce(value, "mean") if world > 1 else value

    # Since the last log step: loss, and batches skipped; in a row now; most in a row. On the device: nothing waits.
    total, skipped, in_a_row, worst = (torch.full((), v, device=device) for v in window.get("sums", [0.0] * 4))
    since = window.get("since", step)
    clock, first = time.perf_counter(), step
    bar = progress_bar(total=config.steps, initial=step, desc="train", show=progress and main)
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        loss_here = torch.zeros((), device=device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's random state stays
            torch.manual_seed(config.seed + 1_000_003 * (step * world + rank))  # dropout masks, the same after a resume
            for m in range(config.accumulate):
                x_0, y = batches.get(step, m)
                index = places[m]
                t = _timesteps(config.seed, step, index, config.batch_size, schedule.T)
                eps = counter_rng.normal(config.seed, step, index, tuple(x_0.shape[1:]))
                if config.channels_last and x_0.ndim == 4:
                    x_0 = x_0.contiguous(memory_format=torch.channels_last)
                last = m == config.accumulate - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(objective):  # gradients meet once a step
                    value = compute(x_0, t, eps, y)
                    accelerator.backward(value / config.accumulate)
                loss_here += value.detach() / config.accumulate
        norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
        # A non-finite batch is skipped on the device: fused Adam leaves its state alone where found_inf is 1.
        bad = (~(norm.isfinite() & loss_here.isfinite())).float()
        if world > 1:  # all processes skip, or none
            bad = accelerator.reduce(bad, "sum").clamp(max=1)
        if optimizer.defaults["fused"]:
            optimizer.found_inf = bad  # type: ignore[attr-defined]
            optimizer.step()
        elif not bool(bad):  # on other devices the host has to look
            optimizer.step()
        optimizer.zero_grad()
        total += torch.where(bad > 0, 0, loss_here)
        skipped += bad
        in_a_row = (in_a_row + 1) * bad
        worst = torch.maximum(worst, in_a_row)
        ema.update(trainable)
        step += 1
        bar.update()

        if step % config.log_every == 0 or step == config.steps:
            if int(worst) >= SKIPS_ALLOWED:
                raise TrainingError(f"step {step}: {int(worst)} batches in a row had a non-finite loss or gradient "
                                    f"({int(skipped)} since the last log step); lower the learning rate, check the "
                                    "images for NaN, or use weight='pdae'")
            batches.left_out.tell()
            now = time.perf_counter()
            entry = {"step": step, "images": step * config.batch_size,
                     "loss": float(mean(total)) / max(step - since - int(skipped), 1),
                     "lr": learning_rate(config, step - 1),
                     "images_per_second": round((step - first) * config.batch_size / (now - clock), 1)}
            if int(skipped):
                entry["skipped"] = int(skipped)
                warnings.warn(f"step {step}: {int(skipped)} non-finite batches skipped since step {since}", PDAEWarning,
                              stacklevel=2)
            if callback is not None:
                model.eval()
                entry |= {k: v.item() if hasattr(v, "item") else v for k, v in (callback(step, model) or {}).items()}
                model.train()
            history.append(entry)
            bar.set_postfix(loss=f"{entry['loss']:.4g}")
            if writer is not None:
                for key, value in entry.items():
                    writer.add_scalar(key, value, step)
            for counter in (total, skipped, worst):
                counter.zero_()
            since = step
        if step % config.save_every == 0 or step == config.steps or asked:
            sums = [float(v) for v in (mean(total), skipped, in_a_row, worst)]
            state.save(step, history, {"since": since, "sums": sums})
        if asked and step < config.steps:
            bar.close()
            return
        if since == step:
            yield TrainResult(model, history)
            clock, first = time.perf_counter(), step
    bar.close()
    if writer is not None:
        writer.close()

    ema.copy_to(trainable)
    model.eval()
    path = None
    if out is not None:
        path = Path(out) / "model.safetensors"
        if main:
            facts = {"training": asdict(config), "images_seen": step * config.batch_size, "torch": torch.__version__}
            guard(save_model, path, model, facts | (metadata or {}))
            guard(write_text, Path(out) / "history.json", json.dumps(history, indent=0))
        accelerator.wait_for_everyone()
    yield TrainResult(model, history, path)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then cosine to zero over the last `decay` share of the steps."""
    lr = config.lr * min(1.0, (step + 1) / max(config.warmup, 1))
    start = config.steps * (1 - config.decay)
    if config.decay and step > start:
        lr *= 0.5 * (1 + math.cos(math.pi * (step - start) / (config.steps - start)))
    return lr


def _timesteps(seed: int, step: int, index: Tensor, batch_size: int, T: int) -> Tensor:
    """t for each sample: one uniform draw for the whole batch, spread evenly over it (Kingma et al. 2021, App. I.1).
    Each t is uniform on 0 … T−1, and the loss of a batch varies less than with independent draws."""
    u = counter_rng.uniform(seed, step, torch.zeros(1, dtype=torch.int64, device=index.device), 1, "t")[0]
    return (((u + index / batch_size) % 1.0) * T).long().clamp(max=T - 1)
