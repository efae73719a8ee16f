"""Avnet Ultra96-V2."""

from boards.board import Board
from boards.zu3eg import PART, SOURCES

BOARD = Board(
    name="ultra96-v2",
    kind="fpga",
    finn="Ultra96-V2",
    part="xczu3eg-sbva484-1-i",
    **PART,
    sources=(("part", "FINN util/basic.py, pynq_part_map: xczu3eg-sbva484-1-i"), *SOURCES),
)
