"""Every RTL block against NumPy in Verilator, with random stalls, over its parameters (hypothesis) and every way to fold it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import one_node, prove, random_folds
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from hw.fpga import ir, reference
from hw.fpga.assemble import layer_of
from hw.fpga.blocks import blocks
from hw.fpga.blocks.base import Fold, Target

TARGETS = [Target(25, 18), Target(27, 18), Target(18, 18)]
few = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
many = settings(few, max_examples=8)


@st.composite
def tensors(draw: st.DrawFn, bits: tuple[int, int] = (2, 8)) -> ir.Tensor:
    b = draw(st.integers(*bits))
    low, high = (-(1 << (b - 1)), (1 << (b - 1)) - 1) if draw(st.booleans()) else (0, (1 << b) - 1)
    return ir.Tensor(
        (draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 3, 4, 6, 8]))), low, high
    )


@st.composite
def geometry(draw: st.DrawFn, height: int, width: int) -> ir.Window:
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    window = ir.Window(kernel, (draw(st.integers(1, 3)), draw(st.integers(1, 3))), dilation, pads)  # type: ignore[arg-type]
    return window if min(window.output(height, width)) > 0 else ir.Window()


def check(op: ir.Op, ins: list[ir.Tensor], draw_seed: int, work: Path) -> None:
    rng = random.Random(draw_seed)
    target = rng.choice(TARGETS)
    graph = one_node(op, *ins)
    prove(graph, random_folds(graph, rng, target), target, work, seed=draw_seed % 1000)


@many
@given(st.data(), tensors(), st.integers(0, 9999), st.integers(2, 8), st.booleans())
def test_conv(tmp_path: Path, draw: st.DataObject, x: ir.Tensor, seed: int, wb: int, narrow: bool) -> None:
    window = draw.draw(geometry(*x.shape[:2]))
    rng = np.random.default_rng(seed)
    weight = rng.integers(
        -(1 << (wb - 1)) + narrow,
        1 << (wb - 1),
        (draw.draw(st.sampled_from([1, 2, 3, 4, 8])), *window.kernel, x.channels),
    )
    check(ir.Conv(weight, window, 1, wb), [x], seed, tmp_path / "w")


@many
@given(tensors(), st.integers(0, 9999), st.integers(2, 8), st.sampled_from([1, 3, 4, 8]), st.integers(1, 4))
def test_conv_weights_from_memory(tmp_path: Path, x: ir.Tensor, seed: int, wb: int, outputs: int, rows: int) -> None:
    """Weights by a stream, each for 8 to 32 pixels, several blocks of pixels a frame."""
    x = ir.Tensor((8, rows, x.channels), x.low, x.high)
    weight = np.random.default_rng(seed).integers(-(1 << (wb - 1)), 1 << (wb - 1), (outputs, 1, 1, x.channels))
    graph = one_node(ir.Conv(weight, ir.Window(), 1, wb), x)
    target = replace(random.Random(seed).choice(TARGETS), memory=random.Random(seed).choice([64, 128]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hw.fpga.blocks.conv.LEAST_STREAM_BITS", 1)
        folds = [f for f in blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target) if f.form == "stream"]
    fold = random.Random(seed).choice(folds)
    prove(graph, {"y": fold}, target, tmp_path / "w", seed=seed % 1000)


@pytest.mark.parametrize("pixels", [4, 16])
def test_weights_from_memory_come_in_time(tmp_path: Path, pixels: int) -> None:
    """With enough arithmetic a word, the unit is as fast as predicted behind a memory that takes 50 to 90 cycles to answer."""
    weight = np.random.default_rng(0).integers(-7, 8, (64, 1, 1, 64))
    graph = one_node(ir.Conv(weight, ir.Window(), 1, 4), ir.Tensor((4, 8, 64), 0, 255))
    target = Target(27, 18, 128)
    folds = blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target)
    fold = next(f for f in folds if f.form == "stream" and (f.pe, f.simd, f.dsp, f.pixels) == (2, 8, True, pixels))
    measured = prove(graph, {"y": fold}, target, tmp_path / "w")
    assert 0.85 * fold.cycles <= measured.interval <= 1.02 * fold.cycles


@few
@given(st.data(), tensors(), st.integers(0, 9999), st.integers(2, 8))
def test_depthwise(tmp_path: Path, draw: st.DataObject, x: ir.Tensor, seed: int, wb: int) -> None:
    if x.channels == 1:
        x = ir.Tensor((*x.shape[:2], 4), x.low, x.high)
    window = draw.draw(geometry(*x.shape[:2]))
    weight = np.random.default_rng(seed).integers(-(1 << (wb - 1)), 1 << (wb - 1), (x.channels, *window.kernel, 1))
    check(ir.Conv(weight, window, x.channels, wb), [x], seed, tmp_path / "w")


@many
@given(st.data(), tensors(), st.integers(0, 9999), st.integers(2, 8))
def test_depthwise_parallel_window(tmp_path: Path, draw: st.DataObject, x: ir.Tensor, seed: int, wb: int) -> None:
    """Several window elements of every channel in a beat, whole windows among them."""
    window = draw.draw(geometry(*x.shape[:2]))
    weight = np.random.default_rng(seed).integers(-(1 << (wb - 1)), 1 << (wb - 1), (x.channels, *window.kernel, 1))
    assume(x.channels > 1)
    graph = one_node(ir.Conv(weight, window, x.channels, wb), x)
    target = random.Random(seed).choice(TARGETS)
    folds = blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target)
    folds = [f for f in folds if f.form == "lines"]
    assume(folds)
    fold = random.Random(seed).choice(folds)
    measured = prove(graph, {"y": fold}, target, tmp_path / "w", seed=seed % 1000)
    assert measured.interval <= 1.05 * fold.cycles + 3  # an image of few pixels: the pipelines' own length shows


@few
@given(st.data(), tensors(), st.integers(0, 9999), st.sampled_from(["max", "sum"]))
def test_pool(tmp_path: Path, draw: st.DataObject, x: ir.Tensor, seed: int, kind: str) -> None:
    window = draw.draw(geometry(*x.shape[:2]))
    if kind == "max" and any(
        p >= k * d for p, k, d in zip(window.pads, window.kernel * 2, window.dilation * 2, strict=True)
    ):
        window = ir.Window((2, 1) if x.shape[0] > 1 else (1, 1))  # a window all in the padding has no maximum
    check(ir.Pool(kind, window), [x], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.sampled_from(["max", "sum"]))
def test_global_pool(tmp_path: Path, x: ir.Tensor, seed: int, kind: str) -> None:
    check(ir.GlobalPool(kind), [x], seed, tmp_path / "w")


@many
@given(tensors((4, 14)), st.integers(0, 9999), st.integers(1, 8), st.booleans(), st.integers(1, 14))
def test_scale_serial(tmp_path: Path, x: ir.Tensor, seed: int, bits: int, shared: bool, most: int) -> None:
    """Some bits of the multiplier a cycle, in place of a multiplication."""
    rng = np.random.default_rng(seed)
    rows = 1 if shared else x.channels
    m, b = rng.integers(0, 1 << most, rows), rng.integers(-(1 << 20), 1 << 20, rows)
    graph = one_node(ir.Scale(m, b, most + int(rng.integers(0, 9)), -(1 << bits) + 1, (1 << bits) - 1), x)
    target = random.Random(seed).choice(TARGETS)
    folds = [f for f in blocks()["Scale"].folds(layer_of(graph, graph.nodes[0]), target) if f.form == "serial"]
    assert folds
    fold = random.Random(seed).choice(folds)
    measured = prove(graph, {"y": fold}, target, tmp_path / "w", seed=seed % 1000)
    assert measured.interval <= fold.cycles + 3


@few
@given(tensors((4, 14)), st.integers(0, 9999), st.integers(1, 8), st.booleans())
def test_scale(tmp_path: Path, x: ir.Tensor, seed: int, bits: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = 1 if shared else x.channels
    shift = int(rng.integers(0, 12))
    op = ir.Scale(
        rng.integers(-300, 300, rows), rng.integers(-5000, 5000, rows), shift, -(1 << bits) + 1, (1 << bits) - 1
    )
    check(op, [x], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.integers(2, 3))
def test_add(tmp_path: Path, x: ir.Tensor, seed: int, inputs: int) -> None:
    rng = np.random.default_rng(seed)
    others = [ir.Tensor(x.shape, -int(rng.integers(1, 60)), int(rng.integers(1, 60))) for _ in range(inputs - 1)]
    op = ir.Add(rng.integers(-99, 99, (inputs, 1)), rng.integers(-99, 99, 1), int(rng.integers(0, 6)), -40, 41)
    check(op, [x, *others], seed, tmp_path / "w")


@few
@given(tensors((2, 6)), st.integers(0, 9999), st.integers(1, 6), st.booleans())
def test_table(tmp_path: Path, x: ir.Tensor, seed: int, bits: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(-(1 << bits), 1 << bits, (1 if shared else x.channels, x.high - x.low + 1))
    check(ir.Table(table, x.low), [x], seed, tmp_path / "w")


@few
@example(ir.Tensor((1, 1, 2), 0, 7), 0, 1, -4, False)  # every result negative
@given(
    tensors((3, 12)),
    st.integers(0, 9999),
    st.sampled_from([1, 2, 3, 5, 7, 15, 31]),
    st.sampled_from([0, -4, 3]),
    st.booleans(),
)
def test_thresholds(tmp_path: Path, x: ir.Tensor, seed: int, levels: int, low: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(x.low, x.high + 2, (1 if shared else x.channels, levels)), axis=1)
    check(ir.Thresholds(t, low), [x], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_concat(tmp_path: Path, x: ir.Tensor, seed: int, channels: list[int]) -> None:
    rng = np.random.default_rng(seed)
    others = [ir.Tensor((*x.shape[:2], c), -int(rng.integers(0, 9)), int(rng.integers(1, 200))) for c in channels]
    check(ir.Concat(), [x, *others], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.integers(1, 12))
def test_gather(tmp_path: Path, x: ir.Tensor, seed: int, count: int) -> None:
    index = tuple(int(i) for i in np.random.default_rng(seed).integers(0, x.channels, count))
    check(ir.Gather(index), [x], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.integers(1, 3), st.integers(1, 3))
def test_upsample(tmp_path: Path, x: ir.Tensor, seed: int, y: int, z: int) -> None:
    check(ir.Upsample((y, z)), [x], seed, tmp_path / "w")


@few
@given(tensors(), st.integers(0, 9999), st.integers(1, 5))
def test_top_k(tmp_path: Path, x: ir.Tensor, seed: int, k: int) -> None:
    assume(k <= x.channels)
    check(ir.TopK(k), [x], seed, tmp_path / "w")


@pytest.mark.parametrize("wb", [4, 8])
@pytest.mark.parametrize("target", TARGETS, ids=["dsp48e1", "dsp48e2", "ecp5"])
def test_packed_products_at_their_extremes(tmp_path: Path, wb: int, target: Target) -> None:
    """Two products in one multiplier, every weight and input at the end of its range, full and narrow weights."""
    x = ir.Tensor((2, 2, 8), 0, 255)
    low = -(1 << (wb - 1))
    rows = np.array(
        [
            [low] * 8,
            [-low - 1] * 8,
            [low, -low - 1] * 4,
            [-low - 1, low] * 4,
            [low + 1] * 8,
            [0] * 8,
            [-1] * 8,
            [low, 0] * 4,
        ]
    )
    graph = one_node(ir.Conv(rows[:, None, None, :], ir.Window(), 1, wb), x)
    layer = layer_of(graph, graph.nodes[0])
    folds = [f for f in blocks()["Conv"].folds(layer, target) if f.dsp and f.pe in (2, 8) and f.simd in (1, 8)]
    assert folds
    for k, fold in enumerate(folds):
        prove(graph, {"y": fold}, target, tmp_path / str(k), frames=6)


def test_every_operator_has_a_block() -> None:
    kinds = {t.__name__ for t in ir.Op.__args__}  # type: ignore[attr-defined]
    assert kinds == set(blocks())


def test_folds_tell_the_cycles(tmp_path: Path) -> None:
    x = ir.Tensor((6, 5, 4), 0, 15)
    graph = one_node(
        ir.Conv(np.random.default_rng(0).integers(-7, 8, (6, 3, 3, 4)), ir.Window((3, 3), pads=(1, 1, 1, 1)), 1, 4), x
    )
    fold = Fold(2, 2, cycles=6 * 5 * 9 * 2 * 3)
    measured = prove(graph, {"y": fold}, TARGETS[0], tmp_path, frames=8)
    assert measured.predicted == fold.cycles
    assert abs(measured.interval - fold.cycles) <= 0.02 * fold.cycles


def test_reference_pool_pads_with_nothing() -> None:
    x = np.full((1, 2, 2, 1), -5)
    op = ir.Pool("max", ir.Window((3, 3), pads=(1, 1, 1, 1)))
    assert (reference.apply(op, [x]) == -5).all()


@pytest.mark.parametrize("pads", [(2, 2, 2, 2), (0, 1, 5, 0), (0, 0, 3, 3)])
def test_windows_that_start_below_the_image(tmp_path: Path, pads: tuple[int, int, int, int]) -> None:
    """The last windows see padding only, while rows of the next frame already come in."""
    graph = one_node(ir.Pool("sum", ir.Window((1, 1), pads=pads)), ir.Tensor((4, 5, 2), -8, 7))
    prove(graph, {"y": Fold(1, 1)}, TARGETS[0], tmp_path, frames=6)


@many
@given(st.data(), tensors(), st.integers(0, 9999), st.integers(2, 8), st.sampled_from([(3, 1), (3, 3), (3, 7), (5, 2)]))
def test_deformable(
    tmp_path: Path, draw: st.DataObject, x: ir.Tensor, seed: int, wb: int, form: tuple[int, int]
) -> None:
    """Distances of every value up to the bound, on images smaller and larger than the reach; one port, a row, all taps."""
    kernel, bound = form
    dense = draw.draw(st.booleans())
    x = ir.Tensor((draw.draw(st.integers(1, 40)), draw.draw(st.integers(1, 6)), x.channels), x.low, x.high)
    outputs = draw.draw(st.sampled_from([1, 2, 4])) if dense or x.channels == 1 else x.channels
    groups = 1 if dense or x.channels == 1 else x.channels
    rng = np.random.default_rng(seed)
    weight = rng.integers(-(1 << (wb - 1)), 1 << (wb - 1), (outputs, kernel, kernel, x.channels // groups))
    op = ir.Conv(weight, ir.Window((kernel, kernel)), groups, wb, bound)
    graph, target = one_node(op, x, ir.Tensor((*x.shape[:2], 1), 0, bound)), random.Random(seed).choice(TARGETS)
    fold = random_folds(graph, random.Random(seed), target)
    measured = prove(graph, fold, target, tmp_path / "w", seed=seed % 1000)
    assert measured.interval <= 1.05 * fold["y"].cycles + 20


@many
@given(st.integers(0, 9999), st.sampled_from([11, 19]), st.sampled_from([10, 29]), st.sampled_from([1, 3]))
def test_folds_that_do_not_divide_the_channels(
    tmp_path: Path, seed: int, channels: int, outputs: int, kernel: int
) -> None:
    """Zeros fill up the last beat of the input, and what they give is cut off the output."""
    rng = np.random.default_rng(seed)
    x = ir.Tensor((3, 4, channels), 0, 255)
    window = ir.Window((kernel, kernel), pads=(kernel // 2,) * 4)
    op = ir.Conv(rng.integers(-8, 8, (outputs, kernel, kernel, channels)), window, 1, 4)
    graph, target = one_node(op, x), random.Random(seed).choice(TARGETS)
    folds = blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target)
    chosen = [f for f in folds if channels % f.simd or outputs % f.pe]
    assume(chosen)
    fold = random.Random(seed).choice(chosen)
    measured = prove(graph, {"y": fold}, target, tmp_path / "w", seed=seed % 1000)
    assert measured.interval <= 1.05 * fold.cycles + 8


@many
@given(tensors(), st.integers(0, 9999), st.integers(1, 12))
def test_gather_through_memory(tmp_path: Path, x: ir.Tensor, seed: int, outputs: int) -> None:
    """Any channels in any order, repeated or left out, as wires or through a memory of two pixels."""
    op = ir.Gather(tuple(int(i) for i in np.random.default_rng(seed).integers(0, x.channels, outputs)))
    graph = one_node(op, x)
    folds = blocks()["Gather"].folds(layer_of(graph, graph.nodes[0]), TARGETS[0])
    fold = random.Random(seed).choice(folds)
    measured = prove(graph, {"y": fold}, TARGETS[0], tmp_path / "w", seed=seed % 1000)
    assert measured.interval <= 1.05 * fold.cycles + 8
