"""The training loop, on Hugging Face Accelerate: one process or many, CPU or GPU, the same samples, losses and weights.

A batch is that of all processes together, and each takes its part of it. State (weights, optimizer, schedule, position) goes
to a folder every so many steps, complete or not at all; a run that finds it goes on where it stopped, to the same bits.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from compress.finetune.dataset import Augmented, Order
from compress.finetune.losses import Loss
from compress.quantize.qat import Trained, hold, least_scales
from deploy.artifact import fsync_tree
from deploy.checkpoint import flatten
from deploy.errors import BoundError, UserError
from deploy.progress import track
from deploy.runner import processes

WARM_UP = 0.05  # of all steps


@dataclass(frozen=True)
class Options:
    """lr, scale_lr: see qat.Trained.groups. stop_at: metric at which training may end.
    state: folder for the training state; key: what the state must have been made for."""

    epochs: int
    batch: int
    micro_batch: int
    lr: float
    scale_lr: float
    seed: int
    stop_at: float | None
    state: Path | None
    key: str
    save_every: int


@dataclass
class Progress:
    """Where training stands; part of the saved state."""

    epoch: int = 0
    step: int = 0  # within the epoch
    losses: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    stopped: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "losses": list(self.losses), "metrics": list(self.metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def schedule(step: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(total * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def accelerator() -> Any:
    """Accelerate's Accelerator for this process. Raises UserError when the package is missing, or does not see the processes
    that a launcher started."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
    except ImportError:
        raise UserError("--finetune needs accelerate; pip install 'deploy-toolchain[finetune]'") from None
    hub = Accelerator(
        cpu=not torch.accelerator.is_available(),  # several processes without accelerators talk through gloo
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        rng_types=[],
    )
    if processes() > 1 and hub.num_processes != processes():
        raise UserError(
            f"{processes()} processes were started, but accelerate joined {hub.num_processes}; start them with accelerate launch or torchrun"
        )
    return hub


def _own_state(hub: Any, plan: Any, progress: Progress) -> None:
    """Save and load weights and position in place of Accelerate: Brevitas makes new parameters when it loads a state, which the
    optimizer would not know, and Accelerate would unpickle other objects."""
    from safetensors.torch import load_file, save

    def before_saving(models: list[nn.Module], weights: list[Any], folder: str) -> None:
        if hub.is_main_process:
            state = dict(hub.unwrap_model(models[0]).named_parameters())
            tensors = {n: p.detach().cpu().contiguous() for n, p in state.items()}
            (Path(folder) / "weights.safetensors").write_bytes(save(tensors))
            position = {"schedule": plan.last_epoch, **progress.state_dict()}
            (Path(folder) / "position.json").write_text(json.dumps(position))
        weights.clear()

    def before_loading(models: list[nn.Module], folder: str) -> None:
        state = load_file(Path(folder) / "weights.safetensors")
        with torch.no_grad():
            for name, p in hub.unwrap_model(models[0]).named_parameters():
                p.copy_(state[name])
        models.clear()
        position = json.loads((Path(folder) / "position.json").read_text())
        plan.last_epoch = int(position.pop("schedule"))
        progress.load_state_dict(position)

    hub.register_save_state_pre_hook(before_saving)
    hub.register_load_state_pre_hook(before_loading)


def _resume(hub: Any, options: Options) -> None:
    """Go on from a saved state where there is one. Raises UserError when it is damaged, or not every process sees it."""
    from accelerate.utils import gather_object
    from safetensors import SafetensorError

    found = saved(options.state, options.key)
    names = gather_object([found.name if found else ""])
    if len(set(names)) > 1:
        raise UserError(
            "some processes see a saved training state and others do not; the output's folder must be shared by all hosts, or the state removed"
        )
    if found is None:
        return
    try:
        hub.load_state(str(found))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        EOFError,
        SafetensorError,
        UnpicklingError,
    ):
        raise UserError(f"{found} is damaged; remove it to train from the start") from None


def _save(hub: Any, options: Options, progress: Progress) -> None:
    assert options.state is not None
    done = progress.epoch, progress.step
    fresh = options.state / f".step-{done[0]:05d}-{done[1]:07d}"
    final = options.state / fresh.name[1:]
    if hub.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    hub.wait_for_everyone()
    hub.save_state(str(fresh))
    hub.wait_for_everyone()
    if hub.is_main_process:
        (fresh / "key.json").write_text(json.dumps({"key": options.key}))
        fsync_tree(fresh)
        old = [p for p in options.state.iterdir() if p.name.startswith("step-")]
        shutil.rmtree(final, ignore_errors=True)
        os.rename(fresh, final)
        for path in old:
            if path != final:
                shutil.rmtree(path, ignore_errors=True)
    hub.wait_for_everyone()


def saved(state: Path | None, key: str) -> Path | None:
    """The newest complete training state made for `key`, or None. Raises UserError for one of another run."""
    if state is None or not state.is_dir():
        return None
    found = sorted(p for p in state.iterdir() if p.name.startswith("step-"))
    if not found:
        return None
    try:
        made_for = json.loads((found[-1] / "key.json").read_text())["key"]
    except (OSError, ValueError, KeyError):
        made_for = ""
    if made_for != key:
        raise UserError(f"{state} holds the training state of other settings or data; remove it, or give another -o")
    return found[-1]


def train(
    module: nn.Module,
    teacher: nn.Module,
    trained: Trained,
    data: Augmented,
    order: Order,
    loss_of: Loss,
    measure: Callable[[nn.Module], float],
    options: Options,
    hub: Any,
) -> Progress:
    """Train `module` in place against `teacher`; both stay in eval mode: statistics frozen, dropout off.

    data yields [inputs..., labels (if any)] by `order`. measure(module): the metric after every epoch, higher is better.
    Raises BoundError when the loss is not finite, UserError for a batch that the processes cannot share.
    """
    if order.batch_size % hub.num_processes:
        raise UserError(
            f"--batch {order.batch_size} cannot be shared by {hub.num_processes} processes; give a multiple"
        )
    inputs = len(data.samples.inputs)
    optimizer = torch.optim.Adam(trained.groups(options.lr, options.scale_lr))
    total = options.epochs * len(order)
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total))
    loader = torch.utils.data.DataLoader(data, batch_sampler=order, collate_fn=list)  # type: ignore[arg-type]
    least = least_scales(trained)
    module.eval()
    teacher = teacher.to(hub.device).eval()
    for p in teacher.parameters():
        p.requires_grad_(False)
    wrapped, optimizer, loader = hub.prepare(module, optimizer, loader)
    least = [v.to(hub.device) for v in least]
    progress = Progress()
    _own_state(hub, plan, progress)
    _resume(hub, options)
    while progress.epoch < options.epochs and not progress.stopped:
        order.epoch, order.start = progress.epoch, progress.step
        label = _Label(progress, len(order), options.epochs)
        for batch in track(loader, label, len(order) - order.start):
            optimizer.zero_grad()
            loss = _backward(hub, wrapped, teacher, batch, inputs, loss_of, options.micro_batch)
            optimizer.step()
            plan.step()
            hold(trained, least)
            value = float(hub.reduce(loss, "mean"))
            if not math.isfinite(value):
                raise BoundError(f"training diverged in epoch {progress.epoch + 1} (the loss is {value}); lower --lr")
            progress.losses.append(value)
            progress.step += 1
            if (
                options.state
                and options.save_every
                and progress.step % options.save_every == 0
                and progress.step < len(order)
            ):
                _save(hub, options, progress)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.metrics.append(_everywhere(hub, lambda: measure(hub.unwrap_model(wrapped))))
        progress.stopped = options.stop_at is not None and progress.metrics[-1] >= options.stop_at
        if options.state:
            _save(hub, options, progress)
    module.to("cpu")
    teacher.to("cpu")
    return progress


def _backward(
    hub: Any, module: Any, teacher: nn.Module, batch: list[Tensor], inputs: int, loss_of: Loss, micro: int
) -> Tensor:
    """The mean loss of this process' part of a batch, its gradients accumulated over micro-batches of `micro` samples (0: one)."""
    parts = list(zip(*(v.split(micro or len(v)) for v in batch), strict=True))
    total = torch.zeros((), device=hub.device)
    for k, part in enumerate(parts):
        values, labels = part[:inputs], part[inputs] if len(part) > inputs else None
        with torch.no_grad():
            wanted = flatten(teacher(*values))
        with nullcontext() if k == len(parts) - 1 else hub.no_sync(module):
            loss = loss_of(flatten(module(*values)), wanted, labels) * (len(values[0]) / len(batch[0]))
            hub.backward(loss)
        total += loss.detach()
    return total


def _everywhere(hub: Any, compute: Callable[[], float]) -> float:
    """A number that the main process computes."""
    from accelerate.utils import broadcast_object_list

    value = [compute() if hub.is_main_process else 0.0]
    return float(broadcast_object_list(value)[0])


class _Label:
    """The progress line: epoch, loss (mean of the last 20 steps), last metric."""

    def __init__(self, progress: Progress, steps: int, epochs: int) -> None:
        self.progress, self.steps, self.epochs = progress, steps, epochs

    def __str__(self) -> str:
        p = self.progress
        text = f"fine-tuning, epoch {p.epoch + 1} of {self.epochs}"
        if p.losses:
            text += f", loss {sum(p.losses[-20:]) / len(p.losses[-20:]):.4f}"
        return text + (f", metric {p.metrics[-1]:.2f}" if p.metrics else "")
