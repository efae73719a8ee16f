"""`deploy export`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import UserError
from deploy.stage import Outcome, Requirement, Stage, lazy
from export.config import ExportConfig


def inputs(config: ExportConfig) -> dict[str, Path]:
    if not config.model:
        raise UserError(
            "MODEL is missing: give a compressed folder or a checkpoint, for example: deploy export compressed"
        )
    return {"model": Path(config.model)}


def plan(config: ExportConfig) -> list[str]:
    return [
        f"load {config.model}",
        "export the float model to float.onnx, the compressed one to model.qonnx.onnx",
        "lower QONNX to model.onnx (QDQ, opset 21)",
        f"check parity on {config.parity_samples} fresh inputs",
        f"write {config.output}",
    ]


def _equal(differ: int, compared: int, steps: int = 1) -> str:
    if not differ:
        return f"all {compared} equal"
    return f"{differ} of {compared} differ by at most {steps} step{'s' if steps > 1 else ''} (rounding ties)"


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    rows = summary["parity"]
    lines = [
        f"{c['what']}: {c['figure']:.2g} {c['unit']} against {c['against']} ({c['samples']} inputs)"
        for c in rows["checks"]
    ]
    if rows["integers_compared"]:
        lines.append(
            f"integers against the QONNX reference, layer by layer: {_equal(rows['own_differ'], rows['integers_compared'])}; "
            f"run through the whole network: {_equal(rows['carried_differ'], rows['integers_compared'], rows['carried_max'])}"
        )
    lines += [f"{name}: {size / 1e6:.2f} MB" for name, size in summary["bytes"].items()]
    return Outcome(tuple(lines), next=f"deploy profile {folder} -o {folder.parent / 'profile'}")


STAGE = Stage(
    name="export",
    help="write ONNX for runtimes and QONNX for hardware, parity shown",
    config=ExportConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("export.stage:run_stage"),
    describe=describe,
    section=lazy("export.section:section"),
    check=lazy("export.stage:check_folder"),
    order=20,
    packages=(
        "torch",
        "torchvision",
        "timm",
        "brevitas",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
        "qonnx",
        "numpy",
    ),
    requirements=(
        Requirement("onnx", "package", "no export", "pip install onnx"),
        Requirement("qonnx", "package", "no integer reference", "pip install qonnx"),
    ),
)
