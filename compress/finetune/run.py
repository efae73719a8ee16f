"""Fine-tuning of one post-training quantized model: data, loss and metric of a configuration, the loop, the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.config import CompressConfig
from compress.convbn import Mode, set_mode
from compress.finetune.dataset import AUGMENT, Augmented, Order, Samples, split
from compress.finetune.loop import Options, accelerator, train
from compress.finetune.losses import Loss, Metric, accuracy, make_loss
from compress.quantize import qat
from compress.quantize.plan import Plan
from deploy.arch import attribute
from deploy.checkpoint import flatten
from deploy.data import Batch, top1
from deploy.errors import UserError

EVALUATE = 250  # samples at once


@torch.no_grad()
def _outputs(module: nn.Module, samples: Samples) -> np.ndarray:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    rows = zip(*(x.split(EVALUATE) for x in samples.inputs), strict=True)
    return np.concatenate([flatten(module(*(v.to(device) for v in row)))[0].float().cpu().numpy() for row in rows])


def _error(outputs: np.ndarray, wanted: np.ndarray) -> float:
    """Signal to noise ratio in dB against the float model's outputs: the metric of models that are no classifiers."""
    noise = float(np.square(outputs - wanted, dtype=np.float64).mean())
    return float(10 * np.log10(np.square(wanted, dtype=np.float64).mean() / max(noise, 1e-30)))


class _Measure:
    """The metric on held-out samples: accuracy against labels, agreement with the float model's classes, or dB."""

    def __init__(self, teacher: nn.Module, samples: Samples, metric: str) -> None:
        self.samples = samples
        wanted = _outputs(teacher, samples)
        classes = wanted.ndim == 2 and wanted.shape[1] > 1
        self.function: Metric = accuracy if classes else _error
        self.name = "top-1 %" if samples.labels is not None else "agreement %"
        self.target: np.ndarray = top1(wanted) if classes else wanted
        if not classes:
            self.name = "dB"
        elif samples.labels is not None:
            self.target = samples.labels.numpy()
        if metric:
            self.function, self.name = attribute("--metric", metric), metric
            if samples.labels is None:
                raise UserError("--metric compares with labels; --train has none")
            self.target = samples.labels.numpy()
        self.of_teacher = float(self.function(wanted, self.target))

    def __call__(self, module: nn.Module) -> float:
        return float(self.function(_outputs(module, self.samples), self.target))


def finetune(
    module: nn.Module,
    floats: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    config: CompressConfig,
    training: Sequence[Batch],
    state: Path | None = None,
    key: str = "",
) -> dict[str, Any]:
    """Train a quantized module in place, from its post-training result; returns the record.

    floats: its graph with float layers (where the weights come from). teacher: the float model. training: labelled or not.
    state, key: see loop.Options.
    """
    hub = accelerator()
    samples = Samples.of(training)
    if samples.labels is None and config.label_weight:
        raise UserError("--label-weight needs labels, and --train has none; leave it at 0")
    if samples.labels is not None and config.label_weight and not config.loss:
        _check_labels(samples, teacher)
    samples, held = split(samples, config.held_out, config.seed)
    order = Order(len(samples), config.batch, config.seed)
    data = Augmented(samples, AUGMENT[config.augment], config.seed, order)
    loss: Loss = attribute("--loss", config.loss) if config.loss else make_loss(config.temperature, config.label_weight)
    measure = _Measure(teacher, held, config.metric)
    before = measure(module)
    set_mode(module, Mode.TUNE)  # BatchNorms that were not folded
    trained = qat.start(module, floats, plan)
    stop = measure.of_teacher - config.stop_drop if config.stop_drop >= 0 else None
    options = Options(
        config.epochs,
        config.batch,
        config.micro_batch,
        config.lr,
        config.scale_lr,
        config.seed,
        stop,
        state,
        key,
        config.save_every,
    )
    done = train(module, teacher, trained, data, order, loss, measure, options, hub)
    set_mode(module, Mode.TRAIN)  # BatchNorms with torch's own train() again
    qat.finish(module, plan)
    steps = len(order)
    return {
        "samples": len(samples),
        "held_out": len(held),
        "labels": samples.labels is not None,
        "epochs": done.epoch,
        "steps": len(done.losses),
        "processes": hub.num_processes,
        "metric": measure.name,
        "metric_float": measure.of_teacher,
        "metric_ptq": before,
        "metrics": done.metrics,
        "stopped_early": done.stopped,
        "loss": [float(np.mean(done.losses[k : k + steps])) for k in range(0, len(done.losses), steps)],
        "losses": [round(v, 7) for v in _thinned(done.losses)],
    }


def _check_labels(samples: Samples, teacher: nn.Module) -> None:
    """Raises UserError for labels that are not classes of the model."""
    assert samples.labels is not None
    out = _outputs(teacher, samples.take(torch.arange(1)))
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if samples.labels.ndim != 1 or out.ndim != 2 or low < 0 or high >= out.shape[1]:
        raise UserError(
            f"--label-weight wants one class number per sample, 0 to {out.shape[1] - 1 if out.ndim == 2 else '?'}; --train has {low} to {high}"
        )


def _thinned(values: list[float], most: int = 500) -> list[float]:
    """At most `most` values of a long curve, means of equal stretches."""
    every = -(-len(values) // most)
    return [float(np.mean(values[k : k + every])) for k in range(0, len(values), every)]
