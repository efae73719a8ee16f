"""Utilization: layers summed against the whole, the cache, the UltraScale+ library, gate-level simulation, failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import graph_of, network, one_node

import boards
from deploy.errors import BoundError, ToolError, UserError
from hw.fpga import fold, gates, ir, simulate, synthesize
from hw.fpga.assemble import assemble
from hw.fpga.checks import check_fit
from hw.fpga.netlist import Netlist


def _small(board: str, interval: int = 4096) -> tuple[ir.Graph, Netlist]:
    graph = graph_of(network("mlp")[1])
    part = boards.get(board)
    return graph, assemble(graph, fold.search(graph, part, interval).folds, fold.target_of(part))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesize, "cache_folder", lambda: tmp_path / "cache")


@pytest.mark.parametrize("board", ["pynq-z2", "ultra96", "ulx3s-85f"])
def test_layers_add_up_to_the_whole(board: str, tmp_path: Path) -> None:
    _, net = _small(board)
    cells, cached = synthesize.by_layer(net, boards.get(board), tmp_path / "s")
    whole, summed = synthesize.flat(net, boards.get(board), tmp_path / "f"), synthesize.total(cells)
    assert cached == 0
    assert (
        abs(summed.lut - whole.lut) <= (0.16 if board == "ulx3s-85f" else 0.08) * whole.lut
    )  # ECP5: tables in logic merge across layers
    assert abs(summed.ff - whole.ff) <= 0.05 * whole.ff
    assert (summed.dsp, summed.bram18) == (whole.dsp, whole.bram18)
    assert synthesize.by_layer(net, boards.get(board), tmp_path / "again")[1] == len(net.layers())


def test_only_the_changed_layer_is_synthesized_again(tmp_path: Path) -> None:
    graph, net = _small("pynq-z2")
    synthesize.by_layer(net, boards.get("pynq-z2"), tmp_path / "s")
    node = next(n for n in graph.nodes if n.name == "conv2")
    weight = node.op.weight.copy()  # type: ignore[union-attr]
    weight[0, 0, 0, 0] = -weight[0, 0, 0, 0] or 1
    graph.replace_node(node, op=ir.Conv(weight, node.op.window, 1, node.op.weight_bits))  # type: ignore[union-attr]
    changed = assemble(
        graph, fold.search(graph, boards.get("pynq-z2"), 4096).folds, fold.target_of(boards.get("pynq-z2"))
    )
    assert synthesize.by_layer(changed, boards.get("pynq-z2"), tmp_path / "t")[1] == len(net.layers()) - 1


def test_multiplier_takes_two_products(tmp_path: Path) -> None:
    """4 x 8 bit: sixteen multipliers for thirty-two products, nothing of them left to logic but the sums."""
    rng = np.random.default_rng(0)
    graph = one_node(ir.Conv(rng.integers(-7, 8, (16, 3, 3, 8)), ir.Window((3, 3)), 1, 4), ir.Tensor((6, 6, 8), 0, 255))
    part = boards.get("pynq-z2")
    folds = {"y": fold.Fold(4, 8, dsp=True)}
    cells, _ = synthesize.by_layer(assemble(graph, folds, fold.target_of(part)), part, tmp_path)
    assert cells["y"].dsp == 16


@pytest.mark.parametrize("board", ["pynq-z2", "ulx3s-85f"])
def test_mapped_netlist_equals_the_reference(board: str, tmp_path: Path) -> None:
    graph, net = _small(board)
    assert gates.verify(graph, net, boards.get(board), simulate.random_inputs(graph, 3, 2), tmp_path) == 30


def test_ultrascale_netlists_are_refused(tmp_path: Path) -> None:
    graph, net = _small("ultra96")
    with pytest.raises(UserError, match="no models of the UltraScale"):
        gates.verify(graph, net, boards.get("ultra96"), simulate.random_inputs(graph, 3, 2), tmp_path)


def test_what_does_not_fit_names_the_layer() -> None:
    cells = {"conv0": synthesize.Cells(lut=50_000), "conv1": synthesize.Cells(lut=9_000), "": synthesize.Cells()}
    with pytest.raises(
        BoundError, match=r"does not fit pynq-z2: 59,000 LUT of 53,200.*features.0 costs most with 50,000"
    ):
        check_fit(cells, boards.get("pynq-z2"), {"conv0": "features.0"})


def test_yosys_that_dies_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.sv").write_text("module bad(input logic clk); wrong; endmodule\n")
    with pytest.raises(ToolError, match="yosys failed") as caught:
        synthesize.yosys(tmp_path, synthesize.commands(["bad.sv"], "bad", "xc7"), "bad")
    assert "bad.sv" in caught.value.log
