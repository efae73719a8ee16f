"""This computer's processor; its numbers are read at import, its roof is measured by `deploy profile`."""

import os
import platform

from boards.board import Board
from deploy.artifact import cpu_name

BOARD = Board(
    name="host-cpu",
    kind="host",
    part=cpu_name(),
    processor=f"{os.cpu_count()} cores, {platform.machine()}",
    flow="ONNX Runtime, TVM",
    programmer="none",
    sources=(("part, processor", "/proc/cpuinfo and os.cpu_count() of this computer"),),
)
