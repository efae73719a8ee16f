"""`deploy compress` as a stage: files in, a compressed folder out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from compress import recipe as recipes
from compress.api import compress
from compress.command import inputs
from compress.config import CompressConfig
from compress.search.budget import parse
from deploy import checkpoint, data
from deploy.arch import is_known
from deploy.artifact import hash_input
from deploy.checkpoint import flatten
from deploy.errors import BoundError, UserError
from deploy.inputs import examples
from deploy.runner import rank, settings_of

RECORD = "record.json"


def run_stage(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """Compress `config.model` into `folder`; returns the summary. The written model is reloaded and compared bit for bit."""
    torch.manual_seed(config.seed)
    loaded = checkpoint.load(
        Path(config.model),
        arch=config.arch,
        arch_args=config.arch_arg,
        input_shape=config.input_shape,
        trust_pickle=config.trust_pickle,
    )
    checkpoint.check_forward(loaded, config.seed)
    batch = loaded.inputs[0].shape[0] if loaded.fixed_batch else 32
    calibration = (
        data.load(
            config.calib, loaded.inputs, loaded.preprocess, limit=config.calib_samples, batch=batch, seed=config.seed
        )
        if config.calib
        else None
    )
    if calibration is not None and loaded.fixed_batch:
        calibration = [b for b in calibration if len(b) == batch]
        if not calibration:
            raise UserError(f"--calib gives fewer samples than the program's fixed batch of {batch}; give more")
    evaluation = None
    if config.eval:
        evaluation = data.load(
            config.eval,
            loaded.inputs,
            loaded.preprocess,
            limit=config.eval_samples,
            batch=batch if loaded.fixed_batch else 250,
            labels=True,
            flag="--eval",
            seed=config.seed,
        )
    training = None
    if config.train:
        training = data.load(
            config.train,
            loaded.inputs,
            loaded.preprocess,
            limit=config.train_samples,
            batch=batch if loaded.fixed_batch else 1000,
            flag="--train",
            seed=config.seed,
        )
    state = Path(config.output).absolute()
    state = state.with_name(f".{state.name}.training")
    result = compress(
        loaded.module,
        config,
        inputs=loaded.inputs,
        preprocess=loaded.preprocess,
        calibration=calibration,
        evaluation=evaluation,
        training=training,
        state=state if config.finetune else None,
        key=_training_key(config),
        arch=loaded.arch,
        arch_args=loaded.arch_args,
        fixed_batch=loaded.fixed_batch,
    )
    float_state = {k: v.contiguous().clone() for k, v in loaded.module.state_dict().items()}
    if loaded.arch is None:
        shutil.copyfile(loaded.path, folder / recipes.PROGRAM)
    else:
        recipes.store(
            folder / recipes.FLOAT, float_state, {"arch": loaded.arch, "arch_args": json.dumps(loaded.arch_args)}
        )
    (folder / recipes.RECIPE).write_text(json.dumps(result.recipe, indent=1) + "\n")
    (folder / RECORD).write_text(json.dumps(result.record, indent=1) + "\n")
    recipes.store(folder / recipes.STATE, recipes.state_of(result.module))
    arch = config.arch if loaded.arch and not is_known(loaded.arch) else ""
    _check_reload(folder, arch, result.module, loaded)
    size = (folder / recipes.STATE).stat().st_size
    if config.budget.startswith("size=") and size > parse(config.budget).limit:
        raise BoundError(f"the file has {size:,} bytes, over --budget {config.budget}; allow more")
    if rank() == 0:
        shutil.rmtree(state, ignore_errors=True)
    record = result.record
    bits = Counter(row["bits"] for row in record["layers"].values())
    return {
        "notice": record["notice"],
        "calibration": record["calibration"],
        "architecture": loaded.arch or f"exported program {loaded.path.name}",
        "bits": config.bits,
        "act_bits": config.act_bits,
        "bytes": (folder / recipes.STATE).stat().st_size,
        "float_bytes": sum(t.numel() * t.element_size() for t in float_state.values()),
        "quantized_layers": len(record["layers"]),
        "layers_by_bits": {str(b): n for b, n in sorted(bits.items())},
        "activation_quantizers": record["activation_quantizers"],
        "folded": sum(r["folded"] for r in record["folded"]),
        "left_in_float": len(record["float_layers"]),
        "parameters": record["parameters"],
        "macs": record["macs"],
        "accuracy": record.get("accuracy", {}),
        "search": _searched(record.get("search")),
        "ptq_accuracy": record.get("ptq_accuracy", {}),
        "finetune": {k: v for k, v in record.get("finetune", {}).items() if k not in ("loss", "losses", "metrics")},
        "methods": record["methods"],
        "prune": {
            k: v for k, v in record.get("prune", {}).items() if k not in ("groups", "vtrans", "refit", "training")
        },
    }


def _searched(search: dict[str, Any] | None) -> dict[str, Any]:
    if not search or "chosen" not in search:
        return {}
    return {
        "budget": search["budget"], "trials": search["trials"], "cost": search["cost"], "value": search["chosen"]["cost"], "points_lost": search["chosen"]["drop"],
    }  # fmt: skip


def _training_key(config: CompressConfig) -> str:
    """What a saved training state must have been made for: every setting that decides the result, and the files."""
    if not config.finetune:
        return ""
    paths = inputs(config)
    files = {n: hash_input(p) for n, p in paths.items()}
    return hashlib.sha256(
        json.dumps([settings_of(config, paths), files], sort_keys=True, default=str).encode()
    ).hexdigest()


@torch.no_grad()
def _check_reload(folder: Path, arch: str, module: torch.nn.Module, loaded: checkpoint.Loaded) -> None:
    again = recipes.load(folder, arch)
    values = [torch.from_numpy(x) for x in examples(loaded.inputs, 1)]
    for a, b in zip(flatten(module(*values)), flatten(again(*values)), strict=True):
        if not torch.equal(a, b):
            raise BoundError(
                f"the reloaded model differs from the compressed one by {float((a - b).abs().max()):.1e}; report this model"
            )


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the model reloads strictly and gives varying, finite outputs on fresh inputs."""
    recipe = recipes.read(folder)
    module = recipes.load(folder, arch)
    values = [torch.from_numpy(x) for x in examples(recipes.inputs_of(recipe), seed)]
    with torch.no_grad():
        out = flatten(module(*values))
    varied = all(bool(torch.isfinite(t).all()) for t in out) and any(bool((t != t.reshape(-1)[0]).any()) for t in out)
    return [("reloads strictly, outputs vary", varied, f"{sum(t.numel() for t in out)} outputs on fresh inputs")]
