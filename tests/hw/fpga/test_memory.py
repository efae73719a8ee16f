"""Weights from memory off the chip: chosen where block RAM runs out, laid out as the reader reads, bit-exact behind a slow memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import one_node, prove

import boards
from hw.fpga import fold, ir, memory, reference, section, simulate, synthesize
from hw.fpga.assemble import assemble, layer_of
from hw.fpga.blocks import blocks

BOARD = boards.get("ultra96")


def chain(*channels: int) -> ir.Graph:
    """Pointwise convolutions of 8 x 8 pixels, each requantized to 8 bits."""
    rng = np.random.default_rng(0)
    first = ir.Tensor((8, 8, channels[0]), 0, 255)
    graph, x, made = ir.Graph(), "x0", 0
    for a, b in pairwise(channels):
        conv = ir.Conv(rng.integers(-7, 8, (b, 1, 1, a)), ir.Window(), 1, 4)
        for op in (conv, ir.Scale(rng.integers(200, 400, b), rng.integers(-999, 999, b), 15, 0, 255)):
            if not graph.nodes:
                graph = one_node(op, first)
                graph.nodes.clear()
                del graph.tensors["y"]
            y = f"y{made}"
            graph.tensors[y] = reference.result(op, [graph.tensors[x]])
            graph.nodes.append(ir.Node(f"n{made}", op, (x,), y, f"layer {made}"))
            x, made = y, made + 1
    out = graph.tensors[x]
    spec = ir.Output(x, "y", np.ones(out.channels), np.zeros(out.channels), np.arange(out.size), (out.size,))
    graph.outputs = [spec]
    return graph


@pytest.fixture(scope="module")
def tight() -> tuple[ir.Graph, fold.Folding]:
    graph = chain(96, 128, 64, 160)
    found = fold.search(graph, BOARD, 40_000, replace(fold.Budget.of(BOARD), bram18=3, lut=6000))
    return graph, found


def test_search_takes_memory_only_where_block_ram_runs_out(tight: tuple[ir.Graph, fold.Folding]) -> None:
    graph, found = tight
    streams = [f for f in found.folds.values() if f.form == "stream"]
    assert streams and found.stream == sum(f.stream for f in streams) <= fold.Budget.of(BOARD).stream
    assert found.interval <= 40_000
    roomy = fold.search(graph, BOARD, 40_000)
    assert roomy.fits and not any(f.form == "stream" for f in roomy.folds.values())
    without = fold.search(graph, boards.get("ulx3s-85f"), 40_000, replace(fold.Budget.of(BOARD), bram18=3, lut=6000))
    assert not any(f.form == "stream" for f in without.folds.values())  # no processor, no port


def test_bit_exact_and_in_time(tight: tuple[ir.Graph, fold.Folding], tmp_path: Path) -> None:
    graph, found = tight
    measured = prove(graph, found.folds, fold.target_of(BOARD), tmp_path / "w")
    assert measured.interval <= 1.05 * found.interval


def test_three_channels_share_the_port(tmp_path: Path) -> None:
    """96 of its 128 bits a cycle: each layer still runs as predicted, because enough bursts are in hand."""
    graph, target = chain(128, 128, 128, 128), fold.target_of(BOARD)
    folds = dict(fold.search(graph, BOARD, 40_000).folds)
    for node in graph.nodes:
        if isinstance(node.op, ir.Conv):
            able = blocks()["Conv"].folds(layer_of(graph, node), target)
            folds[node.name] = next(
                f for f in able if (f.form, f.pe, f.simd, f.dsp, f.pixels) == ("stream", 4, 8, True, 4)
            )
    assert sum(f.stream for f in folds.values()) == 96
    measured = prove(graph, folds, target, tmp_path / "w", frames=6)
    assert measured.interval <= 1.03 * max(f.cycles for f in folds.values())


def test_image_is_what_the_regions_say(tight: tuple[ir.Graph, fold.Folding]) -> None:
    graph, found = tight
    net = assemble(graph, found.folds, fold.target_of(BOARD))
    image, where = memory.image(net), memory.regions(net)
    assert len(image) == sum(r.bursts for r in where) * memory.align(net)
    for stored, region in zip(net.stored, where, strict=True):
        size, at = stored.word_bits // 8, region.first * memory.align(net)
        for k in (0, 1, len(stored.words) - 1):
            assert int.from_bytes(image[at + k * size : at + (k + 1) * size], "little") == stored.words[k]
        assert len(stored.words) <= region.total == region.bursts * memory.align(net) // size
    assert 4096 % memory.align(net) == 0  # no burst crosses a page


def test_a_wrong_image_is_noticed(tight: tuple[ir.Graph, fold.Folding], tmp_path: Path) -> None:
    """One bit of one word: the comparison with the reference fails."""
    graph, found = tight
    net = assemble(graph, found.folds, fold.target_of(BOARD))
    words = net.stored[0].words
    net.stored[0] = replace(net.stored[0], words=[words[0] ^ 1, *words[1:]])
    with pytest.raises(Exception, match="differ"):
        simulate.verify(graph, net, simulate.random_inputs(graph, 2, 1), tmp_path / "w")


def test_the_reader_is_counted(tight: tuple[ir.Graph, fold.Folding], tmp_path: Path) -> None:
    graph, found = tight
    net = assemble(graph, found.folds, fold.target_of(BOARD))
    joints = synthesize._joints(net)
    cells, _ = synthesize.by_layer(net, BOARD, tmp_path)
    assert cells[""].lut > joints.lut + 100 and cells[""].bram18 > 0


@pytest.mark.parametrize("depth", [100, 600, 800, 5000])
def test_gently_squeezed_fifos(tight: tuple[ir.Graph, fold.Folding], depth: int) -> None:
    graph, found = tight
    deep = assemble(graph, found.folds, fold.target_of(BOARD))
    deep = assemble(graph, found.folds, fold.target_of(BOARD), {i.name: depth for i in deep.fifos()})
    small = simulate.squeezed(graph, found.folds, deep, 3)
    assert all(depth / 2 < d <= depth for d in small.values())
    assert min(small.values()) < depth or depth < 768


def test_squeezed_fifos_keep_a_block_and_every_join(tight: tuple[ir.Graph, fold.Folding]) -> None:
    graph, found = tight
    deep = assemble(graph, found.folds, fold.target_of(BOARD))
    deep = assemble(graph, found.folds, fold.target_of(BOARD), {i.name: 5000 for i in deep.fifos()})
    small = simulate.squeezed(graph, found.folds, deep)
    for fifo in deep.fifos():
        node = next((n for n in graph.nodes if n.name == fifo.layer), None)
        if node is not None and found.folds[node.name].form == "stream":
            chosen = found.folds[node.name]
            assert small[fifo.name] >= chosen.pixels * graph.tensors[node.inputs[0]].channels // chosen.simd
        elif node is not None:
            assert small[fifo.name] < 5000


def test_the_report_says_what_memory_gives() -> None:
    row = {"channels": 10, "frame_bytes": 5_720_064.0, "bits_per_cycle": 76.96, "port_bits": 128}
    said = section._weights({"memory": row, "clock_mhz": 200})
    assert "10 layers" in said and "1,924 MB/s" in said and "60% of the port" in said
    assert section._weights({}) == "weights stay on the chip"  # a build folder of an earlier version
