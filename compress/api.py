"""`compress(module, config, ...)`: the whole compression of one model as a function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress import recipe as recipes
from compress.config import CompressConfig
from compress.finetune.losses import is_embedding
from compress.graph import relative_error
from compress.quantize.equalize import equalize
from compress.quantize.plan import WEIGHTS, count_macs, make_plan
from compress.quantize.ptq import choose, fit_memory, quantize, settle_biases
from compress.quantize.smooth import smooth
from compress.quantize.synthetic import has_statistics, synthesize
from compress.reparam import merge_branches
from deploy.arch import Preprocess
from deploy.checkpoint import flatten
from deploy.data import Batch, top1
from deploy.errors import BoundError, UserError
from deploy.inputs import InputSpec, examples

FOLD_TOLERANCE = 1e-4
REAL, SYNTHETIC, RANDOM, NONE = "real", "synthetic", "random", "none"


@dataclass(frozen=True)
class Compressed:
    """The compressed module, the recipe that rebuilds it, and the record of what was done."""

    module: nn.Module
    recipe: dict[str, Any]
    record: dict[str, Any]
    float_module: nn.Module


def notice(source: str, config: CompressConfig) -> str:
    """The first line of the output and of the report: what the activations were calibrated with, and what that may cost."""
    if source == REAL:
        return f"calibrated on real data: {config.calib}"
    if source == SYNTHETIC:
        return (
            "calibrated on SYNTHETIC inputs matched to the BatchNorm statistics, not on real data: against real data this cost nothing at 8 bits and "
            "0.1 point at 4 bits on Fashion-MNIST, but 1.5 and 15 points of agreement on MobileNetV2 (bench/); --calib PATH gives real data"
        )
    if source == RANDOM:
        return (
            "calibrated on RANDOM inputs: sizes and speed are meaningful, accuracy is not; --calib PATH gives real data"
        )
    return (
        "WEIGHTS ONLY: no calibration data and no BatchNorm to match, so no activation has a static range (linear layers measure theirs at run time); "
        "convolutions run in float; --calib PATH gives real data"
    )


def tensors(batches: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    return [tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in b.inputs) for b in batches]


def _bounds(preprocess: Preprocess, spec: InputSpec) -> tuple[Tensor, Tensor] | None:
    """Least and largest value that a preprocessed pixel can have; for images only."""
    if len(spec.shape) != 4 or spec.shape[1] not in (1, 3):
        return None
    mean = torch.tensor(preprocess.mean or (0.0,) * spec.shape[1]).reshape(1, -1, 1, 1)
    std = torch.tensor(preprocess.std or (1.0,) * spec.shape[1]).reshape(1, -1, 1, 1)
    return (0 - mean) / std, (1 - mean) / std


def _labels(batches: Sequence[Batch] | None) -> list[Tensor] | None:
    """Class numbers of every batch, None unless all have them."""
    if not batches or any(b.labels is None for b in batches):
        return None
    return [torch.from_numpy(np.asarray(b.labels)).long() for b in batches]


@torch.no_grad()
def predict(module: nn.Module, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray | None]:
    """First output [N, ...] for all batches, and the labels where there are any."""
    outs = [flatten(module(*row))[0].numpy() for row in tensors(batches)]
    labels = [b.labels for b in batches if b.labels is not None]
    return np.concatenate(outs), np.concatenate(labels) if len(labels) == len(batches) else None


def compare(module: nn.Module, reference: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Accuracy of both (where labelled), agreement of their top-1 classes, and signal to noise ratio in dB of the outputs."""
    out, labels = predict(module, batches)
    ref, _ = predict(reference, batches)
    noise = float(np.square(out - ref, dtype=np.float64).mean())
    rows = {
        "samples": float(len(out)),
        "sqnr_db": float(10 * np.log10(np.square(ref, dtype=np.float64).mean() / max(noise, 1e-30))),
    }
    if is_embedding(torch.from_numpy(ref)):
        rows["cosine"] = float((out * ref).sum(1).mean())
    elif out.ndim == 2 and out.shape[1] > 1:
        rows["agreement_percent"] = float((top1(out) == top1(ref)).mean() * 100)
        if labels is not None:
            rows["float_percent"] = float((top1(ref) == labels).mean() * 100)
            rows["compressed_percent"] = float((top1(out) == labels).mean() * 100)
    return rows


def _calibration(
    module: nn.Module,
    config: CompressConfig,
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    batches: Sequence[Batch] | None,
    fixed_batch: bool,
) -> tuple[str, list[tuple[Tensor, ...]]]:
    if batches is not None:
        return (RANDOM if config.calib == "random" else REAL), tensors(batches)
    if has_statistics(module) and len(specs) == 1 and specs[0].dtype == "float32" and config.activations != "none":
        size = int(np.prod(specs[0].shape[1:]))
        samples, steps, batch = (64, 100, 64) if size < 16000 else (32, 60, 16)
        batch = specs[0].shape[0] if fixed_batch else batch
        return SYNTHETIC, synthesize(
            module,
            specs,
            samples=samples,
            steps=steps,
            batch=batch,
            seed=config.seed,
            bounds=_bounds(preprocess, specs[0]),
        )
    return NONE, []


def compress(
    module: nn.Module,
    config: CompressConfig,
    *,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    calibration: Sequence[Batch] | None = None,
    evaluation: Sequence[Batch] | None = None,
    training: Sequence[Batch] | None = None,
    state: Path | None = None,
    key: str = "",
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    fixed_batch: bool = False,
) -> Compressed:
    """Compress a trained model; `module` itself is not changed.

    inputs: its input specs. calibration: unlabelled batches; None takes synthetic inputs (models with BatchNorm) or quantizes
    weights only. evaluation: labelled batches for the accuracy table. training: batches for config.finetune, labelled or not;
    state, key: folder for the training state and what it must have been made for. arch, arch_args: how to rebuild the module.
    fixed_batch: the module takes only the batch size of its specs (exported programs).
    Raises UserError for settings that fit no layer and BoundError when a structural step changes the function.
    """
    preprocess = preprocess or Preprocess()
    reference = copy.deepcopy(module).eval()
    work = copy.deepcopy(module).eval()
    example = [torch.from_numpy(x) for x in examples(inputs, config.seed)]
    source, batches = _calibration(reference, config, inputs, preprocess, calibration, fixed_batch)
    pruned: tuple[dict[str, Any], dict[str, Any]] | None = None
    if config.prune:
        from compress.prune.run import prune

        work, *pruned = prune(work, config, batches, _labels(calibration), training)  # type: ignore[assignment]
    with torch.no_grad():
        before = flatten(work(*example))
    root: nn.Module
    work, merged = merge_branches(work, example)
    root, folds = recipes.structure(work, len(inputs), False, config.fold)
    with torch.no_grad():
        after = flatten(root(*example))
    errors = [e for a, b in zip(after, before, strict=True) if (e := relative_error(a, b)) != float("inf")]
    fold_error = max(errors, default=0.0)
    if fold_error > FOLD_TOLERANCE:
        raise BoundError(
            f"tracing and folding change the output by {fold_error:.1e} relative; pass --no-fold and report this model"
        )
    macs = count_macs(root, example)
    traced = isinstance(root, fx.GraphModule)
    chosen = choose(config, traced, bool(batches))
    remarks = []
    if chosen.equalize and isinstance(root, fx.GraphModule):
        root, remark = equalize(root, example)
        remarks.append(remark)
    if chosen.smooth and isinstance(root, fx.GraphModule):
        remarks.append(f"activation channels of {smooth(root, batches[:4])} groups of layers equalized")
    plan = make_plan(root, root if isinstance(root, fx.GraphModule) else None, config, macs, bool(batches))
    searched = None
    if config.budget or config.sensitivity:
        from compress.search.run import assign

        layers, searched = assign(root, plan, config, batches, inputs)
        if layers:
            config = replace(config, layer=(*config.layer, *layers))
            plan = make_plan(root, root if isinstance(root, fx.GraphModule) else None, config, macs, bool(batches))
    quantized = quantize(root, plan, config, chosen, batches) if plan.layers else copy.deepcopy(root).eval()
    recipe = {
        "format": recipes.FORMAT,
        "arch": arch,
        "arch_args": arch_args or {},
        "inputs": [s.to_json() for s in inputs],
        "preprocess": preprocess.to_json(),
        "merge": bool(merged.blocks),
        "fold": config.fold,
        "plan": plan.to_json(),
    }
    if pruned:
        recipe["prune"] = pruned[0]
    record: dict[str, Any] = {
        "notice": notice(source, config),
        "calibration": source,
        "calibration_samples": sum(len(b[0]) for b in batches),
        "rounding_samples": sum(len(b[0]) for b in fit_memory(root, batches))
        if batches and chosen.rounding == "gptq"
        else 0,
        "methods": {**asdict(chosen), "ranges": config.ranges, "granularity": config.granularity},
        "traced": traced,
        "folded": [asdict(r) for r in folds],
        "fold_error": fold_error,
        "merged": asdict(merged),
        "remarks": remarks,
        "parameters": sum(p.numel() for p in reference.parameters()),
        "macs": sum(macs.values()),
        "layers": {n: asdict(r) for n, r in plan.layers.items()},
        "float_layers": plan.skipped,
        "activation_quantizers": len(plan.quantizers),
        "weights_only": all(r.activations == WEIGHTS for r in plan.layers.values()),
    }
    if pruned:
        record["prune"] = pruned[1]
    if searched is not None:
        record["search"] = searched
    measured = evaluation if evaluation is not None else calibration
    if measured is not None:
        record["accuracy"] = compare(quantized, reference, measured)
    if pruned and measured is not None and plan.layers:
        record["pruned_accuracy"] = compare(root, reference, measured)
    if config.finetune:
        if training is None:
            raise UserError("--finetune needs samples to train on; give --train DATA (labels are optional)")
        from compress.finetune.run import finetune

        record["ptq_accuracy"] = record.get("accuracy", {})
        record["finetune"] = finetune(quantized, root, reference, plan, config, training, state, key)
        settle_biases(quantized, plan)
        if measured is not None:
            record["accuracy"] = compare(quantized, reference, measured)
    return Compressed(quantized, recipe, record, reference)


__all__ = ["Compressed", "compare", "compress", "notice", "predict"]
