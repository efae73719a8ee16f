"""Avnet Ultra96 (V1)."""

from boards.board import Board
from boards.zu3eg import PART, SOURCES

BOARD = Board(
    name="ultra96",
    kind="fpga",
    finn="Ultra96",
    part="xczu3eg-sbva484-1-e",
    **PART,
    sources=(("part", "FINN util/basic.py, pynq_part_map: xczu3eg-sbva484-1-e"), *SOURCES),
)
