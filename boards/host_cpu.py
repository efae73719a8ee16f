"""This computer's processor; its numbers are read at import, its roof is measured by `deploy profile`."""

import os
import platform
from pathlib import Path

from boards.board import Board


def _name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


BOARD = Board(
    name="host-cpu",
    kind="host",
    part=_name(),
    processor=f"{os.cpu_count()} cores, {platform.machine()}",
    flow="ONNX Runtime, TVM",
    programmer="none",
    sources=(("part, processor", "/proc/cpuinfo and os.cpu_count() of this computer"),),
)
