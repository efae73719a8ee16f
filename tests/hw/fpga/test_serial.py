"""The ULX3S's serial link, end to end: the package's own driver, a pseudo-terminal, the Verilated board design."""

from __future__ import annotations

import os
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import graph_of, network

import boards
from hw.fpga import ecp5, fold, library, reference, simulate, verilator
from hw.fpga.assemble import assemble
from hw.fpga.netlist import literal

DRIVER = Path(verilator.__file__).parent / "driver"
DIV = 4


@pytest.fixture(scope="module")
def driver() -> Iterator[object]:
    sys.path.insert(0, str(DRIVER))
    import serial_link

    yield serial_link
    sys.path.remove(str(DRIVER))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, object, object]:
    """(program, its folder, graph, netlist) of the small MLP behind the ULX3S's link."""
    work = tmp_path_factory.mktemp("board")
    graph = graph_of(network("mlp")[1])
    part = boards.get("ulx3s-85f")
    found = fold.search(graph, part, 2000)
    net = assemble(
        graph,
        found.folds,
        fold.target_of(part),
        simulate.size_fifos(graph, found.folds, fold.target_of(part), work / "size"),
    )
    files = library.write(net, work)
    extra, params = ecp5.top_files(net, "0123456789abcdef" * 4, 25, "none")
    params["UART_DIV"] = DIV
    for name, text in extra.items():
        (work / name).write_text(text)
    shell = work / "bench.sv"
    generics = ", ".join(f".{k}({literal(v)})" for k, v in params.items())
    shell.write_text(
        "module bench (input logic clk_25mhz, ftdi_txd, output logic ftdi_rxd, output logic [7:0] led, output logic wifi_gpio0);\n"
        f"  ulx3s #({generics}) board (.*);\nendmodule\n"
    )
    main_ = (Path(__file__).parent / "serial_main.cpp").read_text()
    program = verilator.compile_sources([*(work / n for n in extra), *files, shell], "bench", main_, work)
    return program, work, graph, net


def _plug_in(board: tuple, noise: int) -> tuple[subprocess.Popen, str]:  # type: ignore[type-arg]
    program, work, *_ = board
    master, slave = os.openpty()
    tty.setraw(slave)
    process = subprocess.Popen([str(program), str(master), str(DIV), str(noise)], cwd=work, pass_fds=(master,))
    os.close(master)
    return process, os.ttyname(slave)


@pytest.mark.parametrize("noise", [0, 150], ids=["clean line", "one byte in 150 damaged"])
def test_results_through_the_link(board: tuple, driver: object, noise: int) -> None:  # type: ignore[type-arg]
    from hw.fpga import words

    _, _, graph, net = board
    process, port = _plug_in(board, noise)
    try:
        link = driver.SerialLink.open(port, patience=0.4 if noise else 2.0)  # type: ignore[attr-defined]
        design, into, out = link.info()
        assert design == "0123456789abcdef"
        values = simulate.random_inputs(graph, 6, 5)
        want = reference.execute(graph, values)[graph.outputs[0].tensor]
        data = b"".join(
            w.to_bytes(into, "little") for w in words.to_words(values[graph.inputs[0].tensor], net.inputs[0])
        )
        got = link.transfer(data, len(want) * net.outputs[0].beats * out)
        found = [int.from_bytes(got[k : k + out], "little") for k in range(0, len(got), out)]
        assert np.array_equal(words.from_words(found, net.outputs[0], want.shape[1:]), want)
        assert link.repeated > 0 or not noise
    finally:
        process.kill()
        process.wait()


def test_new_session_starts_the_design_over(board: tuple, driver: object) -> None:  # type: ignore[type-arg]
    """A host that went away in the middle of a frame leaves nothing behind."""
    from hw.fpga import words

    _, _, graph, net = board
    process, port = _plug_in(board, 0)
    try:
        link = driver.SerialLink.open(port, patience=2.0)  # type: ignore[attr-defined]
        link.info()
        assert link.write(b"\x55" * 37)
        link = driver.SerialLink.open(port, patience=2.0)  # type: ignore[attr-defined]
        _, into, out = link.info()
        values = simulate.random_inputs(graph, 2, 6)
        want = reference.execute(graph, values)[graph.outputs[0].tensor]
        data = b"".join(
            w.to_bytes(into, "little") for w in words.to_words(values[graph.inputs[0].tensor], net.inputs[0])
        )
        got = link.transfer(data, len(want) * net.outputs[0].beats * out)
        found = [int.from_bytes(got[k : k + out], "little") for k in range(0, len(got), out)]
        assert np.array_equal(words.from_words(found, net.outputs[0], want.shape[1:]), want)
    finally:
        process.kill()
        process.wait()


def test_silent_board_is_told(driver: object) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    link = driver.SerialLink.open(os.ttyname(slave), patience=0.05)  # type: ignore[attr-defined]
    link.tries = 2
    with pytest.raises(driver.LinkError, match="does not answer"):  # type: ignore[attr-defined]
        link.info()
    os.close(master)


def test_crc_is_the_standard_one(driver: object) -> None:
    assert driver.crc16(b"123456789") == 0x29B1  # type: ignore[attr-defined]
