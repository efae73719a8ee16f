"""Every setting of `deploy detect`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class DetectConfig:
    """Settings of the detection on images."""

    model: str = argument("export folder of a detector (deploy:codenet)", "")
    images: str = option("", "an image, or a folder of images")
    camera: str = option("", "in place of --images: number of a camera, or a video file or stream")
    output: str = option("detect", "folder to write", short="-o", identity=False)
    engine: str = option(
        "onnxruntime",
        "what computes: the runtime's file, or the integer graph that hardware is compared with",
        choices=("onnxruntime", "integer"),
    )
    names: str = option("", "names of the classes, separated by commas")
    least: float = option(0.3, "least score of a box", low=0, high=1)
    most: int = option(100, "boxes per image at most", low=1)
    limit: int = option(50, "images at most, in the order of their names, or frames of --camera", low=1)
    seed: int = option(0, "not used; every stage has one", low=0, high=2**63 - 1)
