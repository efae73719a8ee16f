"""The folding search: deterministic, in seconds, within the board, and true about cycles."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from helpers import graph_of, network

import boards
from deploy.errors import BoundError
from hw.fpga import fold
from hw.fpga.checks import check_speed, tightened


def test_same_answer_and_quickly() -> None:
    graph = graph_of(network("resnet-8")[1])
    start = time.monotonic()
    first = fold.search(graph, boards.get("pynq-z2"), None)
    assert time.monotonic() - start < 10
    assert fold.search(graph, boards.get("pynq-z2"), None) == first
    assert first.fits


def test_faster_costs_more() -> None:
    graph = graph_of(network("resnet-8")[1])
    rows = [fold.search(graph, boards.get("pynq-z2"), n) for n in (300_000, 75_000, 40_000)]
    assert [r.interval <= n for r, n in zip(rows, (300_000, 75_000, 40_000), strict=True)] == [True] * 3
    assert rows[0].lut < rows[1].lut < rows[2].lut


def test_larger_part_is_no_slower() -> None:
    graph = graph_of(network("resnet-8")[1])
    small, large = (fold.search(graph, boards.get(n), None).interval for n in ("pynq-z2", "ultra96"))
    assert large <= small


def test_a_design_that_does_not_fit_is_folded_again() -> None:
    """What Yosys counts beyond the part is taken off the next search's budget, resource by resource."""
    board = boards.get("pynq-z2")
    budget = fold.Budget.of(board)
    assert tightened(budget, {"lut": 0.9, "ff": 0.2, "dsp": 1.0, "bram18": 0.3}) is None
    tighter = tightened(budget, {"lut": 0.9, "ff": 0.2, "dsp": 2.0, "bram18": 0.3})
    assert tighter is not None
    assert (tighter.lut, tighter.bram18) == (budget.lut, budget.bram18)
    assert tighter.dsp == pytest.approx(budget.dsp * 0.485)
    graph = graph_of(network("resnet-8")[1])
    wide, narrow = fold.search(graph, board, 30_000), fold.search(graph, board, 30_000, replace(budget, dsp=8))
    assert wide.interval <= 30_000 and narrow.interval <= 30_000
    assert narrow.dsp < wide.dsp


def test_a_design_slower_than_asked_is_no_success() -> None:
    check_speed(100_900, 100_000, 100)
    check_speed(1e9, None, 100)
    with pytest.raises(BoundError, match="101,100 cycles a frame"):
        check_speed(101_100, 100_000, 100)


@pytest.mark.parametrize("name", ["pynq-z1", "ultra96", "ulx3s-85f"])
def test_multipliers_of_the_part(name: str) -> None:
    target = fold.target_of(boards.get(name))
    assert (target.wide, target.narrow) == {"pynq-z1": (25, 18), "ultra96": (27, 18), "ulx3s-85f": (18, 18)}[name]
