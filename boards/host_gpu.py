"""This computer's NVIDIA processor, where there is one."""

from pathlib import Path

from boards.board import Board


def _name() -> str:
    rows = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for row in rows:
        for line in row.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return "none found"


BOARD = Board(
    name="host-gpu",
    kind="host",
    part=_name(),
    flow="ONNX Runtime CUDA (not measured in this version)",
    programmer="none",
    sources=(("part", "/proc/driver/nvidia/gpus of this computer"),),
)
