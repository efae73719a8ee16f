"""Training of the masks, then of what stays.

Phase one trains masks and weights against the dense model under the bottleneck's cost, while the size falls linearly to its target. The published form
removes units whose log alpha is above 0 and steers the size by a Lagrangian l1 (s - t) + l2 (s - t)^2; in runs of hundreds of steps that either does
nothing (its gradient vanishes where decisions are sure) or overshoots (tried here). So the threshold of log alpha is the multiplier: at every step it
is put where the size meets its aim. Phase two trains the slim model's weights.
Variants: `fast` uses 3 % of the samples; `faster` trains masks only, its weights being refitted in closed form afterwards.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config import CompressConfig
from compress.finetune.dataset import Samples
from compress.finetune.losses import distill, is_embedding
from compress.prune.context import Inputs
from compress.prune.mask import masked
from compress.prune.refit import refit
from compress.prune.size import Size
from compress.prune.slim import check_equal, slim
from compress.prune.structure import Keep, Structure
from compress.prune.vtrans.choose import choose, fold_means
from compress.prune.vtrans.vib import Masks
from deploy.checkpoint import flatten
from deploy.data import Batch
from deploy.errors import UserError
from deploy.progress import track

FAST = 0.03  # share of the samples
LEAST = 200  # steps of a phase at least
MASK_RATE, WEIGHT_DECAY = 0.05, 0.01
BOTTLENECK = 0.05  # weight of the KL term, whose units are weighed by their parameters
START, RAMP = 0.15, 0.7  # of the steps: where the size begins to fall, and where it is at the target
FEATURES = 0.5  # weight of the blocks' features beside the outputs


def _relative(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean() / b.var().clamp(min=1e-8)


class _Features:
    """First outputs of the blocks in the last forward pass."""

    def __init__(self, module: nn.Module, names: Sequence[str], stack: ExitStack) -> None:
        self.values: dict[str, Tensor] = {}
        for name in names:

            def after(layer: Any, args: Any, out: Any, name: str = name) -> None:
                self.values[name] = flatten(out)[0]

            stack.callback(module.get_submodule(name).register_forward_hook(after).remove)


def _loss(
    student: list[Tensor],
    teacher: list[Tensor],
    a: dict[str, Tensor],
    b: dict[str, Tensor],
    labels: Tensor | None,
    config: CompressConfig,
) -> Tensor:
    """Distillation of outputs and features, and of labels where asked for."""
    if is_embedding(teacher[0]):
        value = sum((_relative(x, y) for x, y in zip(student, teacher, strict=True)), start=student[0].new_zeros(()))
    else:
        value = distill(student, teacher, config.temperature)
        if labels is not None and config.label_weight:
            value = (1 - config.label_weight) * value + config.label_weight * F.cross_entropy(student[0], labels)
    inner = [_relative(a[n], b[n]) for n in b if n in a and a[n].shape == b[n].shape]
    return value + FEATURES * torch.stack(inner).mean() if inner else value


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a twentieth, then linear to zero."""
    warm = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, max(0.0, (steps - k) / max(1, steps - warm)))
    )


def _train_masks(
    student: nn.Module,
    teacher: nn.Module,
    structure: Structure,
    size: Size,
    samples: Samples,
    config: CompressConfig,
    steps: int,
    target: float,
) -> tuple[Masks, list[list[float]]]:
    """Phase one; `student` is trained in place unless only masks are."""
    masks = Masks(structure, config.seed)
    weights = [] if config.variant == "faster" else [p for p in student.parameters() if p.requires_grad]
    for parameter in student.parameters():
        parameter.requires_grad_(config.variant != "faster")
    down = torch.optim.AdamW([{"params": masks.parameters(), "lr": MASK_RATE, "weight_decay": 0.0}, *([{"params": weights, "lr": config.prune_lr, "weight_decay": WEIGHT_DECAY}] if weights else [])])  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(down, lambda k: min(1.0, (k + 1) / max(1, steps // 20)))
    generator = torch.Generator().manual_seed(config.seed + 1)
    measure = size.macs if config.macs else size.parameters
    whole = float(measure())
    curve = []
    with ExitStack() as stack:
        a, b = _Features(student, structure.blocks, stack), _Features(teacher, structure.blocks, stack)
        for k in track(list(range(steps)), "VTrans: masks"):
            batch = _part(samples, k, config)
            with torch.no_grad():
                want = flatten(teacher(*batch.inputs))
            progress = min(1.0, max(0.0, ((k + 1) / steps - START) / (RAMP - START)))
            masks.project(lambda share: float(measure(share)) / whole, 1 - (1 - target) * progress)
            share = float(measure(masks.shares())) / whole
            values = masks.sample(len(batch), generator)
            with masked(student, structure, values):
                got = flatten(student(*batch.inputs))
            loss = _loss(got, want, a.values, b.values, batch.labels, config)
            total = loss + BOTTLENECK * masks.divergence(size)
            down.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            down.step()
            schedule.step()
            curve.append([round(float(loss.detach()), 5), round(share, 4), round(masks.threshold, 3)])
    return masks, curve


def _part(samples: Samples, step: int, config: CompressConfig) -> Samples:
    """The batch of one step: a permutation of all samples per epoch, the same for the same seed."""
    batch = min(config.batch, len(samples))
    per_epoch = len(samples) // batch
    epoch, at = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(samples), generator=generator)
    return samples.take(order[at * batch : (at + 1) * batch])


def train_weights(
    small: nn.Module, teacher: nn.Module, blocks: Sequence[str], samples: Samples, config: CompressConfig, steps: int
) -> list[float]:
    """Phase two, in place."""
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(small.parameters(), lr=config.prune_lr, weight_decay=WEIGHT_DECAY)
    schedule = _schedule(optimizer, steps)
    known = dict(small.named_modules())
    names = [n for n in blocks if n in known]
    curve = []
    with ExitStack() as stack:
        a, b = _Features(small, names, stack), _Features(teacher, names, stack)
        for k in track(list(range(steps)), "VTrans: weights"):
            batch = _part(samples, steps + k, config)
            with torch.no_grad():
                want = flatten(teacher(*batch.inputs))
            loss = _loss(flatten(small(*batch.inputs)), want, a.values, b.values, batch.labels, config)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(small.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            curve.append(round(float(loss), 5))
    return curve


def train(
    dense: nn.Module, structure: Structure, size: Size, config: CompressConfig, training: Sequence[Batch] | None
) -> tuple[nn.Module, Keep, dict[str, Any]]:
    """(slim trained module, units kept, record). `dense` is the teacher and stays as it is.

    Raises UserError without training samples, or for a target that structured pruning cannot reach.
    """
    if not training:
        raise UserError("--prune vtrans trains its masks; give --train DATA (labels are optional)")
    samples = Samples.of(training)
    everything = len(samples)
    if config.variant != "full":
        order = torch.randperm(everything, generator=torch.Generator().manual_seed(config.seed))
        samples = samples.take(order[: max(min(config.batch, everything), round(FAST * everything))])
    start = time.perf_counter()
    target = config.macs or config.params
    steps = max(LEAST, round(config.prune_epochs / 2 * len(samples) / config.batch))
    student = copy.deepcopy(dense).eval()
    masks, curve = _train_masks(student, dense, structure, size, samples, config, steps, target)
    measure = size.macs if config.macs else size.parameters
    whole = float(measure())
    reached = curve[-1][1]
    fold_means(student, structure, masks.means())
    keep = choose(structure, masks.log_alphas(), lambda share: float(measure(share)) / whole, target, config.round_to)
    small = slim(student, structure, keep).eval()
    equal = check_equal(student, structure, keep, small, [x[: config.batch] for x in samples.inputs])
    masked_s = time.perf_counter() - start
    record: dict[str, Any] = {
        "variant": config.variant, "samples": len(samples), "of": everything, "steps": steps, "mask_s": masked_s,
        "share_by_masks": reached, "equal": equal, "loss": [c[0] for c in curve[:: max(1, steps // 200)]], "share": [c[1] for c in curve[:: max(1, steps // 200)]], "threshold": [c[2] for c in curve[:: max(1, steps // 200)]],
    }  # fmt: skip
    if config.variant == "faster" and config.refit:
        rows: list[Inputs] = [
            tuple(x[k : k + config.batch] for x in samples.inputs) for k in range(0, len(samples), config.batch)
        ]
        record["refit"] = refit(small, dense, structure, keep, rows)
    elif config.variant != "faster":
        record["weights_loss"] = train_weights(small, dense, structure.blocks, samples, config, steps)[
            :: max(1, steps // 200)
        ]
    record["seconds"] = time.perf_counter() - start
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    return small, keep, record
