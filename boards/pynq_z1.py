"""Digilent PYNQ-Z1."""

from boards.board import Board
from boards.zynq7020 import PART, SOURCES

BOARD = Board(
    name="pynq-z1",
    kind="fpga",
    finn="Pynq-Z1",
    **PART,
    memory_gbs=2.1,
    memory="512 MB DDR3, 16 bit at 1050 MT/s",
    sources=(
        *SOURCES,
        ("finn", "FINN util/basic.py, pynq_part_map"),
        ("memory", "Digilent PYNQ-Z1 reference manual, section 3: DDR3 x16, 1050 Mbps"),
        ("memory_gbs", "16 bit x 1050 MT/s / 8"),
    ),
)
