"""The simulation gate: whole networks in RTL; what is wrong or stuck is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import build, graph_of, network

import boards
from deploy.errors import BoundError, ToolError
from hw.fpga import fold, simulate, verilator
from hw.fpga.assemble import assemble

FEW = [str(s) for s in (300, 303, 311, 317, 324)]


@pytest.mark.parametrize("seed", FEW)
def test_random_networks_in_rtl(seed: str, tmp_path: Path) -> None:
    measured = build(seed, "pynq-z2", tmp_path)
    assert abs(measured.interval - measured.predicted) <= max(0.05 * measured.predicted, 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [str(s) for s in range(300, 340) if str(s) not in FEW])
@pytest.mark.parametrize("board", ["pynq-z2"])
def test_40_random_networks_in_rtl(seed: str, board: str, tmp_path: Path) -> None:
    build(seed, board, tmp_path)


@pytest.mark.parametrize(
    ("name", "board"), [("shufflenet-v2", "ultra96"), ("encoder-decoder", "pynq-z2"), ("mlp", "ulx3s-85f")]
)
def test_named_networks_in_rtl(name: str, board: str, tmp_path: Path) -> None:
    build(name, board, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("board", ["pynq-z2", "ultra96"])
@pytest.mark.parametrize("name", ["mobilenet-v1", "resnet-8", "shufflenet-v2", "encoder-decoder", "mlp"])
def test_all_named_networks_in_rtl(name: str, board: str, tmp_path: Path) -> None:
    build(name, board, tmp_path)


def test_resnet8_at_1300_frames(tmp_path: Path) -> None:
    """The MLPerf Tiny submission of hls4ml has 130.8 frames/s on this board."""
    measured = build("resnet-8", "pynq-z2", tmp_path, 100_000_000 // 1300)
    assert measured.interval <= 100e6 / 1300
    assert abs(measured.interval - measured.predicted) <= 0.05 * measured.predicted


def _design(name: str, depths: dict[str, int] | None = None):  # type: ignore[no-untyped-def]
    graph = graph_of(network(name)[1])
    part = boards.get("pynq-z2")
    folds = fold.search(graph, part, 5000).folds
    return graph, assemble(graph, folds, fold.target_of(part), depths)


def test_deadlock_is_named_not_hung(tmp_path: Path) -> None:
    """A residual network whose short way cannot hold what the long way needs."""
    graph, net = _design("shufflenet-v2")  # FIFOs of two words
    with pytest.raises(BoundError, match=r"deadlocked, data waits at .*stream") as caught:
        simulate.verify(graph, net, simulate.random_inputs(graph, 2, 0), tmp_path)
    assert "beats" in str(caught.value)


def test_wrong_weight_is_named(tmp_path: Path) -> None:
    graph, net = _design("mlp")
    last = graph.nodes[-1]
    name = f"{last.name}_weights.mem"
    first, _, rest = net.files[name].partition("\n")
    net.files[name] = f"{int(first, 16) ^ 1:0{len(first)}x}\n{rest}"
    label = last.label
    with pytest.raises(BoundError, match=f"the first that diverges is {label}"):
        simulate.verify(graph, net, simulate.random_inputs(graph, 4, 0), tmp_path)


def test_verilator_that_dies_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.sv").write_text("module bad(input logic clk); nonsense here; endmodule\n")
    with pytest.raises(ToolError, match="verilator failed") as caught:
        verilator.compile_sources([tmp_path / "bad.sv"], "bad", "int main(){}", tmp_path)
    assert "bad.sv" in caught.value.log
