"""The Zynq kit: its Tcl against the stand-in, and the board package's driver against the Verilated design behind a DMA."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import graph_of, network, one_node

import boards
from deploy.arch import Preprocess
from deploy.errors import ToolError
from hw.fpga import fold, ir, library, memory, package, reference, simulate, verilator, zynq
from hw.fpga.assemble import assemble, layer_of
from hw.fpga.blocks import blocks
from hw.fpga.netlist import Netlist, axis_width

BOARDS = ("pynq-z1", "pynq-z2", "ultra96", "ultra96-v2")


def _stored() -> tuple[ir.Graph, Netlist]:
    """A pointwise convolution whose weights come from memory."""
    weight = np.random.default_rng(0).integers(-7, 8, (64, 1, 1, 64))
    graph = one_node(ir.Conv(weight, ir.Window(), 1, 4), ir.Tensor((4, 4, 64), 0, 255))
    target = fold.target_of(boards.get("pynq-z2"))
    folds = blocks()["Conv"].folds(layer_of(graph, graph.nodes[0]), target)
    chosen = next(f for f in folds if (f.form, f.pe, f.simd, f.pixels) == ("stream", 2, 4, 8))
    return graph, assemble(graph, {"y": chosen}, target)


@pytest.fixture(scope="module", params=["on the chip", "weights in memory"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:  # type: ignore[type-arg]
    if request.param == "weights in memory":
        return *_stored(), tmp_path_factory.mktemp("zynq")
    graph = graph_of(network("mlp")[1])
    part = boards.get("pynq-z2")
    found = fold.search(graph, part, 500)
    net = assemble(graph, found.folds, fold.target_of(part))
    return graph, net, tmp_path_factory.mktemp("zynq")


def _kit(built: tuple, name: str) -> Path:  # type: ignore[type-arg]
    _, net, root = built
    net = replace(net, port_bits=boards.get(name).port_bits)
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    library.write(net, folder / "rtl")
    zynq.write_kit(net, boards.get(name), 100, folder / "vivado")
    return folder / "vivado"


@pytest.mark.parametrize("name", BOARDS)
def test_script_fits_the_design(built: tuple, name: str) -> None:  # type: ignore[type-arg]
    net = replace(built[1], port_bits=boards.get(name).port_bits)
    zynq.check_kit(_kit(built, name), net, boards.get(name))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("add_files -norecurse $here/../rtl/layer_", "add_files -norecurse $here/../rtl/layers_", "does not exist"),
        ("CONFIG.c_include_sg", "CONFIG.c_includes_sg", "no property"),
        (
            "dma/M_AXIS_MM2S] [get_bd_intf_pins accelerator/s_axis",
            "dma/M_AXIS_MM2S] [get_bd_intf_pins accelerator/m_axis",
            "not master to slave",
        ),
        ("xc7z020clg400-1", "xc7z010clg400-1", "part"),
        ("connect_bd_net [get_bd_pins ps/FCLK_CLK0] [get_bd_pins memory/aclk]\n", "", "memory/aclk is not connected"),
        ("assign_bd_address\n", "", "no addresses"),
        ("c_m_axis_mm2s_tdata_width {", "c_m_axis_mm2s_tdata_width {1", "wide"),
    ],
)
def test_script_that_does_not_fit_is_caught(built: tuple, old: str, new: str, said: str) -> None:  # type: ignore[type-arg]
    kit = _kit(built, "pynq-z2")
    text = (kit / "build.tcl").read_text()
    assert old in text
    (kit / "build.tcl").write_text(text.replace(old, new))
    with pytest.raises(ToolError) as caught:
        zynq.check_kit(kit, built[1], boards.get("pynq-z2"))
    assert said in caught.value.log


def test_dma_width() -> None:
    assert [zynq.dma_bits(b) for b in (8, 16, 24, 72, 512)] == [8, 16, 32, 128, 512]


class _Buffer(np.ndarray):
    physical_address = memory.BASE

    def flush(self) -> None: ...
    def invalidate(self) -> None: ...
    def freebuffer(self) -> None: ...


class _Standin:
    """pynq's Overlay, allocate and DMA in front of the Verilated accelerator.v; a transfer is one run of the simulation."""

    def __init__(self, program: Path, net: object, work: Path) -> None:
        self.program, self.net, self.work = program, net, work
        self.batches: list[int] = []

    def module(self) -> types.ModuleType:
        standin = self
        into, out = (zynq.dma_bits(axis_width(s)) for s in (self.net.inputs[0], self.net.outputs[0]))  # type: ignore[attr-defined]

        class Channel:
            def __init__(self, send: bool) -> None:
                self.send, self.buffer, self.idle = send, None, True

            def transfer(self, buffer: np.ndarray) -> None:
                self.buffer = buffer
                if self.send:
                    overlay.run()

        class Overlay:
            def __init__(self, path: str) -> None:
                assert Path(path).is_file() and Path(path).with_suffix(".hwh").is_file()
                self.dma = types.SimpleNamespace(sendchannel=Channel(True), recvchannel=Channel(False))
                self.image = types.SimpleNamespace(write=self.constants)
                nonlocal overlay
                overlay = self

            def constants(self, at: int, value: int) -> None:
                assert (at, value) == (0, memory.BASE | 1)
                (standin.work / "memory.bin").write_bytes(bytes(allocated[-1]))

            def run(self) -> None:
                data, sink = bytes(self.dma.sendchannel.buffer), self.dma.recvchannel.buffer
                words = [int.from_bytes(data[k : k + into // 8], "little") for k in range(0, len(data), into // 8)]
                last = 1 << into
                stream = [w | (last if k == len(words) - 1 else 0) for k, w in enumerate(words)]
                expected = len(sink) // (out // 8)
                run = verilator.simulate(
                    standin.program,
                    [stream],
                    [into + 8],
                    [out + 8],
                    [expected],
                    standin.work,
                    stall_in=0.2,
                    stall_out=0.2,
                    seed=3,
                )
                flags = [w >> out & 1 for w in run.words[0]]
                assert flags == [0] * (expected - 1) + [1], "TLAST marks the end of the batch, once"
                sink[:] = np.frombuffer(
                    b"".join((w & ((1 << out) - 1)).to_bytes(out // 8, "little") for w in run.words[0]), np.uint8
                )
                standin.batches.append(len(words))

        overlay: Overlay
        allocated: list[np.ndarray] = []

        def allocate(shape: tuple[int, ...], dtype: type) -> np.ndarray:
            allocated.append(np.zeros(shape, dtype).view(_Buffer))
            return allocated[-1]

        made = types.ModuleType("pynq")
        made.Overlay = Overlay  # type: ignore[attr-defined]
        made.allocate = allocate  # type: ignore[attr-defined]
        return made


@pytest.fixture
def board(built: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:  # type: ignore[type-arg]
    """(package folder with a stand-in bitstream, the stand-in)."""
    graph, net, _ = built
    values = simulate.random_inputs(graph, 5, 1)
    measured = simulate.Measured(1, 1.0, 1, 1, 1, 1.0, 1)
    bit = tmp_path / "vivado" / "accelerator.bit"
    bit.parent.mkdir()
    bit.write_bytes(b"bits")
    bit.with_suffix(".hwh").write_text("<xml/>")
    folder = tmp_path / "package"
    package.write(
        folder,
        graph,
        net,
        boards.get("pynq-z2"),
        100,
        values,
        reference.execute(graph, values),
        {},
        "ab" * 32,
        {"file": "vivado/accelerator.bit"},
        measured,
        Preprocess(),
    )
    work = tmp_path / "sim"
    work.mkdir()
    into, out = (zynq.dma_bits(axis_width(s)) for s in (net.inputs[0], net.outputs[0]))
    (work / "accelerator.v").write_text(zynq.wrapper(net))
    (work / "frames.sv").write_text((library.RTL / "frames.sv").read_text())
    port = pins = ""
    if net.stored:
        port = "".join(memory.ports(net))
        names = ("araddr", "arlen", "arvalid", "arready", "rdata", "rlast", "rvalid", "rready")
        pins = ".image({base[31:12], 11'b0, go}), .m_axi_rresp(2'b0), .m_axi_arsize(), .m_axi_arburst(), .m_axi_arcache(), .m_axi_arprot(), "
        pins += "".join(f".m_axi_{n}, " for n in names)
    (work / "bench.sv").write_text(
        f"""module bench (input logic clk, rst_n, {port} input logic [{into + 7}:0] s_axis_0_tdata, input logic s_axis_0_tvalid, output logic s_axis_0_tready,
  output logic [{out + 7}:0] m_axis_0_tdata, output logic m_axis_0_tvalid, input logic m_axis_0_tready);
  assign m_axis_0_tdata[{out + 7}:{out + 1}] = '0;
  accelerator dut (.aclk(clk), .aresetn(rst_n), {pins} .s_axis_tdata(s_axis_0_tdata[{into - 1}:0]), .s_axis_tlast(s_axis_0_tdata[{into}]), .s_axis_tvalid(s_axis_0_tvalid),
    .s_axis_tready(s_axis_0_tready), .m_axis_tdata(m_axis_0_tdata[{out - 1}:0]), .m_axis_tlast(m_axis_0_tdata[{out}]), .m_axis_tkeep(), .m_axis_tvalid(m_axis_0_tvalid), .m_axis_tready(m_axis_0_tready));
endmodule
"""
    )
    files = library.write(net, work)
    main = verilator.main_source(net)
    for side, stream in (("input", net.inputs[0]), ("output", net.outputs[0])):
        bits = zynq.dma_bits(axis_width(stream))
        main = main.replace(f"h.{side}({axis_width(stream) // 8},", f"h.{side}({(bits + 8) // 8},")
    program = verilator.compile_sources(
        [*files, work / "frames.sv", work / "accelerator.v", work / "bench.sv"], "bench", main, work
    )
    standin = _Standin(program, net, work)
    monkeypatch.setitem(sys.modules, "pynq", standin.module())
    monkeypatch.syspath_prepend(str(folder))
    for name in ("accelerator", "pynq_link"):
        sys.modules.pop(name, None)
    yield folder, standin
    for name in ("accelerator", "pynq_link"):
        sys.modules.pop(name, None)


def test_driver_on_the_verilated_design(board: tuple, built: tuple, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[type-arg]
    folder, standin = board
    import accelerator

    assert accelerator.main(["validate"]) == 0
    assert accelerator.main(["throughput", "--frames", "12"]) == 0
    assert "frames/s" in capsys.readouterr().out
    graph = built[0]
    x = np.random.default_rng(0).random((3, *graph.inputs[0].shape[1:])).astype(np.float32)
    np.save(folder / "x.npy", x)
    assert accelerator.main(["run", str(folder / "x.npy"), "-o", str(folder / "y.npy")]) == 0
    assert np.allclose(np.load(folder / "y.npy"), reference.run(graph, [x])[0], rtol=0, atol=1e-12)
    assert len(standin.batches) == 3


def test_driver_finds_wrong_results(board: tuple) -> None:  # type: ignore[type-arg]
    folder, _ = board
    import accelerator

    data = dict(np.load(folder / "golden.npz"))
    data["outputs"] = data["outputs"] + 1
    np.savez_compressed(folder / "golden.npz", **data)
    meta = json.loads((folder / "package.json").read_text())
    meta["files"]["golden.npz"] = package.sha256(folder / "golden.npz")
    (folder / "package.json").write_text(json.dumps(meta))
    assert accelerator.main(["validate"]) == 4


def test_changed_package_is_refused(board: tuple, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[type-arg]
    folder, _ = board
    import accelerator

    (folder / "accelerator.bit").write_bytes(b"other")
    assert accelerator.main(["validate"]) == 2
    assert "sha256 differs" in capsys.readouterr().err
    assert not package.check(folder)


def test_package_runs_on_its_own(board: tuple) -> None:  # type: ignore[type-arg]
    """Without pynq the driver says so in one sentence."""
    folder, _ = board
    done = subprocess.run(
        [sys.executable, str(folder / "accelerator.py"), "validate"],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 3 and "PYNQ image" in done.stderr and "Traceback" not in done.stderr
