"""Numbers of the parts, against the data sheets cited in the files."""

from __future__ import annotations

import dataclasses

import pytest

from boards import boards, get
from deploy.errors import UserError


@pytest.mark.parametrize(
    ("name", "part", "lut", "bram18", "dsp"),
    [
        ("pynq-z1", "xc7z020clg400-1", 53200, 280, 220),
        ("pynq-z2", "xc7z020clg400-1", 53200, 280, 220),
        ("ultra96", "xczu3eg-sbva484-1-e", 70560, 432, 360),
        ("ultra96-v2", "xczu3eg-sbva484-1-i", 70560, 432, 360),
        ("ulx3s-85f", "LFE5U-85F-6BG381C", 83640, 208, 156),
    ],
)
def test_parts(name: str, part: str, lut: int, bram18: int, dsp: int) -> None:
    board = get(name)
    assert (board.part, board.lut, board.bram18, board.dsp) == (part, lut, bram18, dsp)


def test_every_board_is_frozen_and_sourced() -> None:
    found = boards()
    assert {"host-cpu", "host-gpu"} < set(found) and len(found) >= 7
    for board in found.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            board.lut = 1  # type: ignore[misc]
        sourced = " ".join(field for field, _ in board.sources)
        if board.kind == "fpga":
            for field in ("part", "lut", "ff", "bram18", "dsp", "memory", "clocks_mhz"):
                assert field in sourced, (board.name, field)


def test_unknown_board_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'pynq-z2'"):
        get("pynqz2")
