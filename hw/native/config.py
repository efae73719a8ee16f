"""Every setting of `deploy native`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class NativeConfig:
    """Settings of the standalone folder."""

    model: str = argument("export folder, or an ONNX file with fixed shapes", "")
    board: str = option("host-cpu", "board (or processor) whose CPU runs the model", short="-b")
    output: str = option("native", "folder to write", short="-o", identity=False)
    float: bool = option(False, "the float file of an export folder, not the compressed one")
    seed: int = option(0, "seed of the inputs of the proof", low=0, high=2**63 - 1)
