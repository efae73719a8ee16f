"""`deploy profile`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import UserError
from deploy.stage import Outcome, Requirement, Stage, lazy
from hw.config import ProfileConfig


def inputs(config: ProfileConfig) -> dict[str, Path]:
    from deploy.data import paths_of

    if not config.model:
        raise UserError("MODEL is missing: give an export folder or an ONNX file, for example: deploy profile export")
    found = {"model": Path(config.model)}
    for path in paths_of(config.eval).values():
        found["eval"] = path
    return found


def plan(config: ProfileConfig) -> list[str]:
    return [
        f"load {config.model} into {config.runtime}, {config.threads} thread(s)",
        *(["try equivalent kernels"] if config.tune else []),
        f"measure {config.samples} samples per candidate, alternated with the float32 baseline",
        *([f"measure accuracy on {config.eval}"] if config.eval else []),
        "time every layer, measure the roofline of this host",
        f"write {config.output}",
    ]


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    lines = []
    for name, row in summary["candidates"].items():
        if "error" in row:
            lines.append(f"{name}: {row['error']}")
            continue
        t = row["latency"]
        ratio = (
            "baseline"
            if name == summary["baseline"]
            else f"{t['ratio']:.2f}x [{t['ratio_low']:.2f}, {t['ratio_high']:.2f}] {t['verdict']}"
        )
        accuracy = f", {row['accuracy']['percent']:.2f} %" if "percent" in row["accuracy"] else ""
        lines.append(
            f"{name}: p50 {t['p50_ms']:.3f} ms, p99 {t['p99_ms']:.3f} ms, {row['bytes'] / 1e6:.2f} MB, {ratio}{accuracy}"
            + (" (machine busy)" if t["busy"] else "")
        )
    lines.append(f"chosen: {summary['chosen']} ({summary['why']})")
    return Outcome(tuple(lines), next=f"deploy report {folder.parent} -o {folder.parent / 'report'}")


PROFILE = Stage(
    name="profile",
    help="measure latency and accuracy of every candidate against float32, keep the best",
    config=ProfileConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("hw.profile:run_stage"),
    describe=describe,
    section=lazy("hw.section:section"),
    check=lazy("hw.profile:check_folder"),
    order=40,
    after="export",
    machine=True,
    fleeting=lambda config: bool(
        config.remote or config.tune_database
    ),  # a board, tuned tiles: not known by their names
    packages=("onnx", "onnxruntime", "numpy", "apache-tvm"),
    requirements=(
        Requirement("onnxruntime", "package", "no CPU profile", "pip install onnxruntime"),
        Requirement("apache-tvm", "package", "no TVM runtime", "pip install 'deploy-toolchain[tvm]'"),
        Requirement("g++", "tool", "no TVM libraries", "apt-get install g++", ("--version",)),
    ),
)
