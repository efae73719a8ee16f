"""`deploy detect`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import UserError
from deploy.stage import Outcome, Stage, lazy
from hw.detect.config import DetectConfig


def inputs(config: DetectConfig) -> dict[str, Path]:
    if not config.model:
        raise UserError(
            "MODEL is missing: give a detector's export folder, for example: deploy detect export --images photos"
        )
    if bool(config.images) == bool(config.camera):
        problem = "--images and --camera exclude each other" if config.images else "--images is missing"
        raise UserError(f"{problem}: give an image or a folder of images, or a camera")
    model = {"model": Path(config.model)}
    if config.camera:
        return model | ({"camera": Path(config.camera)} if Path(config.camera).is_file() else {})
    return model | {"images": Path(config.images)}


def plan(config: DetectConfig) -> list[str]:
    return [
        f"run {config.model} on {config.images or config.camera} ({config.engine})",
        f"keep at most {config.most} peaks an image with a score of at least {config.least:g}",
        f"write boxes and drawn images to {config.output}",
    ]


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    lines = [f"{summary['boxes']} boxes on {summary['images']} images ({summary['engine']})"]
    lines += [f"{name}: {text}" for name, text in summary["first"].items()]
    return Outcome(tuple(lines), next=f"open {folder}/drawn")


DETECT = Stage(
    name="detect",
    help="run an exported detector on images: boxes as JSON, and drawn",
    config=DetectConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("hw.detect.stage:run_stage"),
    describe=describe,
    section=lazy("hw.detect.stage:section"),
    order=60,
    in_chain=False,
    fleeting=lambda config: bool(config.camera) and not Path(config.camera).is_file(),
    packages=("onnx", "onnxruntime", "numpy", "pillow"),
)
