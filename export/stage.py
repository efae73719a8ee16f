"""`deploy export` as a stage: a compressed folder or a checkpoint in, ONNX files with their parity record out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from compress import recipe as recipes
from compress.quantize.scheme import DynamicActivation, is_quantized
from deploy import checkpoint
from deploy.arch import Preprocess
from deploy.artifact import MANIFEST, read_manifest
from deploy.checkpoint import flatten
from deploy.errors import BoundError, UserError
from deploy.inputs import InputSpec
from export import onnxfile, parity
from export.config import ExportConfig
from export.lower import deform
from export.lower.base import run
from export.lower.qdq import to_qdq
from export.square_sample import DOMAIN
from export.torch2onnx import export_float, export_quantized

FLOAT, QONNX, RUNTIME, RECORD = "float.onnx", "model.qonnx.onnx", "model.onnx", "export.json"


@torch.no_grad()
def _torch_outputs(module: nn.Module, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [
        np.concatenate([t.float().numpy().reshape(-1) for t in flatten(module(*[torch.from_numpy(v) for v in row]))])
        for row in rows
    ]


def _onnx_outputs(
    model: onnx.ModelProto, names: Sequence[str], rows: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    session = parity.session(model)
    return [
        np.concatenate([o.astype(np.float32).reshape(-1) for o in session.run(None, parity.feed(names, row))])
        for row in rows
    ]


def _require(row: parity.Parity) -> parity.Parity:
    if not row.passed:
        raise BoundError(
            f"parity of {row.what} against {row.against} fails: {row.figure:.3g} {row.unit}, bound {row.bound:g}; report this model"
        )
    return row


def convert(
    float_module: nn.Module,
    module: nn.Module | None,
    specs: Sequence[InputSpec],
    *,
    dynamic_batch: bool = False,
    samples: int = 4,
    seed: int = 0,
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """Export and check. Returns the files by name and the record (parity, remarks, operators).

    Raises ToolError when the exporter refuses the model, BoundError when a file computes something else.
    """
    names = [s.name for s in specs]
    rows = parity.fresh(specs, samples, seed)
    float_onnx, notes = export_float(float_module, specs, dynamic_batch)
    if any(n.domain == DOMAIN for n in float_onnx.graph.node):
        float_onnx = ir.to_proto(run(ir.from_proto(float_onnx), [deform.PASS])[0])
    onnx.checker.check_model(float_onnx)
    want = _torch_outputs(float_module, rows)
    checks = [_require(parity.compare(FLOAT, "torch (float)", _onnx_outputs(float_onnx, names, rows), want, False))]
    files = {FLOAT: float_onnx}
    steps: list[dict[str, Any]] = []
    record: dict[str, Any] = {"remarks": notes, "passes": []}
    if module is not None and not any(is_quantized(m) for m in module.modules()):
        smaller, more = export_float(module, specs, dynamic_batch)
        onnx.checker.check_model(smaller)
        got = _onnx_outputs(smaller, names, rows)
        checks.append(_require(parity.compare(RUNTIME, "torch (compressed)", got, _torch_outputs(module, rows), False)))
        files[RUNTIME] = smaller
        record["remarks"] = list(dict.fromkeys([*notes, *more]))
    elif module is not None:
        quantized, more = export_quantized(module, specs, dynamic_batch)
        lowered, report = to_qdq(
            ir.from_proto(quantized), any(isinstance(m, DynamicActivation) for m in module.modules())
        )
        runtime = ir.to_proto(lowered)
        onnx.checker.check_model(runtime)
        got = _onnx_outputs(runtime, names, rows)
        checks.append(_require(parity.compare(RUNTIME, "torch (compressed)", got, _torch_outputs(module, rows), True)))
        for row in rows[: parity.REFERENCE_SAMPLES]:
            steps = parity.add_steps(steps, parity.integer_steps(quantized, runtime, parity.feed(names, row)))
        wrong = parity.check_steps(steps)
        if wrong:
            raise BoundError(
                f"{RUNTIME} does not compute the integers of the QONNX reference at {wrong}; report this model"
            )
        files |= {QONNX: quantized, RUNTIME: runtime}
        record["remarks"] = list(dict.fromkeys([*notes, *more, *report.notes]))
        record["passes"] = report.changed
        record["operators"] = dict(Counter(n.op_type for n in runtime.graph.node).most_common())
    record["parity"] = parity.summary(checks, steps)
    record["steps"] = steps
    return files, record


def _source(
    config: ExportConfig,
) -> tuple[nn.Module, nn.Module | None, tuple[InputSpec, ...], Preprocess, dict[str, Any]]:
    path = Path(config.model)
    if path.is_dir():
        if not (path / recipes.RECIPE).is_file():
            raise UserError(
                f"{path} is no compressed model (it has no {recipes.RECIPE}); give the folder that deploy compress wrote"
            )
        recipe = recipes.read(path)
        origin = read_manifest(path)["summary"] if (path / MANIFEST).is_file() else {}
        return (
            recipes.load_float(path, config.arch),
            recipes.load(path, config.arch),
            recipes.inputs_of(recipe),
            recipes.preprocess_of(recipe),
            origin,
        )
    loaded = checkpoint.load(
        path,
        arch=config.arch,
        arch_args=config.arch_arg,
        input_shape=config.input_shape,
        trust_pickle=config.trust_pickle,
    )
    checkpoint.check_forward(loaded, config.seed)
    return loaded.module, None, loaded.inputs, loaded.preprocess, {}


def run_stage(config: ExportConfig, folder: Path) -> dict[str, Any]:
    """Write the ONNX files of `config.model` into `folder`; returns the summary."""
    float_module, module, specs, preprocess, origin = _source(config)
    files, record = convert(
        float_module, module, specs, dynamic_batch=config.dynamic_batch, samples=config.parity_samples, seed=config.seed
    )
    for name, model in files.items():
        (folder / name).write_bytes(model.SerializeToString())
    record |= {
        "inputs": [s.to_json() for s in specs],
        "preprocess": preprocess.to_json(),
        "notice": origin.get("notice", ""),
        "bits": origin.get("bits"),
        "act_bits": origin.get("act_bits"),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    sizes = {name: (folder / name).stat().st_size for name in files}
    return {
        "notice": record["notice"],
        "bytes": sizes,
        "parity": record["parity"],
        "remarks": record["remarks"],
        "quantized": module is not None,
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export folder. Raises UserError when it is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} is no export folder: {RECORD} is missing or damaged; run deploy export again"
        ) from None
    if not isinstance(record, dict) or "inputs" not in record:
        raise UserError(f"{folder / RECORD} is not of this version; run deploy export again")
    return record


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the files still agree with each other on fresh inputs."""
    record = read_record(folder)
    specs = tuple(InputSpec.from_json(r) for r in record["inputs"])
    names = [s.name for s in specs]
    rows = parity.fresh(specs, 2, seed + 1)
    base = onnxfile.load(folder / FLOAT)
    want = _onnx_outputs(base, names, rows)
    checks = [("float.onnx gives varying outputs", parity.varies(want), f"{len(rows)} fresh inputs")]
    if (folder / RUNTIME).is_file() and not (folder / QONNX).is_file():
        smaller = _onnx_outputs(onnxfile.load(folder / RUNTIME), names, rows)
        checks.append(("model.onnx gives varying outputs", parity.varies(smaller), f"{len(rows)} fresh inputs"))
    elif (folder / RUNTIME).is_file():
        runtime, quantized = onnxfile.load(folder / RUNTIME), onnxfile.load(folder / QONNX, check=False)
        found = parity.integer_steps(quantized, runtime, parity.feed(names, rows[0]))
        wrong = parity.check_steps(found)
        ties, total = sum(r["own_differ"] for r in found), sum(r["values"] for r in found)
        checks.append(
            ("runtime integers equal the QONNX reference", not wrong, wrong or f"{ties} ties in {total} integers")
        )
        checks.append(
            (
                "model.onnx gives varying outputs",
                parity.varies(_onnx_outputs(runtime, names, rows)),
                f"{len(rows)} fresh inputs",
            )
        )
    return checks
