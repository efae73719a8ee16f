"""QONNX to the integer graph. `lower(model)` gives the graph, or every operator that the hardware cannot take."""

from __future__ import annotations

from hw.fpga.lower.convert import Lowered, lower
from hw.fpga.lower.problems import Problem

__all__ = ["Lowered", "Problem", "lower"]
