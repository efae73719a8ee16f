"""What a runtime is: it takes an ONNX file and gives something that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx


@dataclass(frozen=True)
class LayerTime:
    """Mean time of one executed node, in microseconds, with the operator that the runtime really ran."""

    name: str
    op: str
    microseconds: float


class Program(Protocol):
    """A loaded model. `run` takes inputs in the model's order and returns its outputs in order."""

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]: ...

    def layers(self, values: list[np.ndarray], repeats: int) -> list[LayerTime]:
        """Time per node; empty where the runtime cannot tell."""
        ...


class Runtime(Protocol):
    """Compiles or loads ONNX files. `missing()` is '' or the sentence that says how to get the runtime."""

    name: str

    def missing(self) -> str: ...

    def load(self, model: onnx.ModelProto, threads: int, work: Path) -> Program:
        """`work` is a folder for the runtime's own files. Raises ToolError when the runtime refuses the model."""
        ...
