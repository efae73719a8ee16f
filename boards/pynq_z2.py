"""TUL PYNQ-Z2."""

from boards.board import Board
from boards.zynq7020 import PART, SOURCES

BOARD = Board(
    name="pynq-z2",
    kind="fpga",
    finn="Pynq-Z2",
    **PART,
    memory_gbs=2.1,
    memory="512 MB DDR3, 16 bit at 1050 MT/s",
    sources=(
        *SOURCES,
        ("finn", "FINN util/basic.py, pynq_part_map"),
        ("memory", "TUL PYNQ-Z2 user manual: 512 MB DDR3, 16-bit bus, 1050 Mbps"),
        ("memory_gbs", "16 bit x 1050 MT/s / 8"),
    ),
)
