"""What a build refuses: before any work (board, clock, tools, frame rate), and afterwards when the design does not fit."""

from __future__ import annotations

from dataclasses import replace

import boards
from boards.board import Board
from deploy.errors import BoundError, UserError
from deploy.tools import Tool
from hw.fpga import ecp5, finn_estimate, fold, gates, ir, library, synthesize, verilator
from hw.fpga.config import BuildConfig


def board_of(config: BuildConfig) -> Board:
    """The FPGA board of a configuration. Raises UserError for none, an unknown one, or a host."""
    if not config.board:
        names = [b.name for b in boards.boards().values() if b.kind == "fpga"]
        raise UserError(f"--board is missing; FPGA boards are {', '.join(names)}")
    board = boards.get(config.board)
    if board.kind != "fpga":
        raise UserError(f"{board.name} is no FPGA; use deploy profile for CPU and GPU runtimes")
    return board


def check_target(config: BuildConfig, board: Board, clock: float, graph: ir.Graph) -> None:
    """What the board's design or the flags rule out, before any work. Raises UserError."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(
            f"a board design has one stream in and one out; this model needs {len(graph.inputs)} and {len(graph.outputs)} "
            "(an input that two quantizers read counts twice); join them, or quantize the input once"
        )
    top = max(board.clocks_mhz)
    if not 1 <= clock <= top:
        raise UserError(f"--clock {clock:g} is outside 1 to {top:g} MHz, the clocks of {board.name}")
    if board.family == "ecp5":
        ecp5.pll(board.oscillator_mhz, clock)
        ecp5.uart_div(clock)
    if config.netlist and board.family == "ultrascale+":
        raise UserError(gates.NO_MODELS)


def check_tools(config: BuildConfig) -> None:
    """Every tool that this build will run is there. Raises UserError for the first that is not."""
    library.finn_rtl()
    verilator.find().require()
    Tool("g++", get="apt-get install g++").require()
    if config.utilization or config.netlist:
        synthesize.python_tool()
    if config.flow == "finn":
        finn_estimate.require_vendor_tools()


def interval_of(config: BuildConfig, clock: float) -> int | None:
    """Cycles a frame may take by --target-fps; None for as fast as fits. Raises UserError."""
    if config.target_fps and config.max_fps:
        raise UserError("--target-fps and --max-fps exclude each other; give one")
    return max(1, int(clock * 1e6 / config.target_fps)) if config.target_fps else None


def check_folding(
    found: fold.Folding, graph: ir.Graph, interval: int | None, board: Board, clock: float, fps: float
) -> None:
    """Raises BoundError where the frame rate is out of reach, or the part far too small, by the search's estimates."""
    slowest = max(found.folds, key=lambda n: found.folds[n].cycles)
    label = next(n.label or n.name for n in graph.nodes if n.name == slowest)
    if interval is not None and found.interval > interval:
        raise BoundError(
            f"{fps:,.0f} frames/s cannot be reached at {clock:g} MHz: {label} takes at least {found.interval:,} cycles a frame "
            f"({clock * 1e6 / found.interval:,.0f} frames/s); raise --clock or lower --target-fps"
        )
    budget = fold.Budget.of(board)
    over = max(found.lut / budget.lut, found.dsp / budget.dsp, found.bram18 / budget.bram18)
    if over > 2.0:
        worst = max(found.folds, key=lambda n: found.folds[n].lut / budget.lut + found.folds[n].bram18 / budget.bram18)
        costly = next(n.label or n.name for n in graph.nodes if n.name == worst)
        raise BoundError(
            f"the design does not fit {board.name}: even its smallest form is estimated at {over:.1f} times what is there "
            f"({found.lut:,.0f} LUT, {found.dsp} DSP, {found.bram18:,.0f} BRAM18); {costly} costs most"
        )


def check_speed(measured: float, interval: int | None, clock: float) -> None:
    """Raises BoundError where the simulated design is slower than was asked for (by more than 1 %)."""
    if interval is not None and measured > 1.01 * interval:
        raise BoundError(
            f"the simulated design takes {measured:,.0f} cycles a frame ({clock * 1e6 / measured:,.1f} frames/s) where {interval:,} were asked for; "
            "ask for a little more (--target-fps) or raise --clock"
        )


def shares(cells: dict[str, synthesize.Cells], board: Board) -> dict[str, float]:
    """Share of the part that a design takes, by resource."""
    whole = synthesize.total(cells)
    return {k: getattr(whole, k) / max(getattr(board, k), 1) for k in ("lut", "ff", "dsp", "bram18")}


def tightened(budget: fold.Budget, share: dict[str, float]) -> fold.Budget | None:
    """The budget of the next search after a design that took too much; None where it fits.

    What was estimated too low by some factor is offered less by that factor, and 3 % for good measure.
    """
    over = {k: min(1.0, 0.97 / share[k]) for k in ("lut", "dsp", "bram18") if share[k] > 1}
    return replace(budget, **{k: getattr(budget, k) * f for k, f in over.items()}) if over else None


def check_fit(cells: dict[str, synthesize.Cells], board: Board, labels: dict[str, str]) -> dict[str, float]:
    """Share of the part by resource. Raises BoundError naming the layer that costs most where it is over 1."""
    whole, share = synthesize.total(cells), shares(cells, board)
    worst = max(share, key=lambda k: share[k])
    if share[worst] > 1:
        layer = max((n for n in cells if n), key=lambda n: getattr(cells[n], worst))
        raise BoundError(
            f"the design does not fit {board.name}: {getattr(whole, worst):,} {worst.upper()} of {getattr(board, worst):,} (post-synthesis, Yosys); "
            f"{labels.get(layer, layer)} costs most with {getattr(cells[layer], worst):,}; lower --target-fps"
        )
    return share
