"""`deploy build` from the command line on the trained demonstration model, and every way it can end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CALIB, MODEL, TEST, deploy
from helpers import network

import boards
from hw.fpga import ecp5, synthesize, verilator


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model at W4A8, exported."""
    root = tmp_path_factory.mktemp("demo")
    assert deploy("compress", MODEL, "--bits", "4", "--calib", CALIB, "-o", str(root / "c"), "-q").code == 0
    assert deploy("export", str(root / "c"), "-o", str(root / "e"), "-q").code == 0
    return root / "e"


@pytest.fixture(scope="session")
def built(exported: Path) -> Path:
    out = exported.parent / "build"
    ran = deploy(
        "build",
        str(exported),
        "--board",
        "pynq-z2",
        "--target-fps",
        "1000",
        "--eval",
        TEST,
        "--frames",
        "100",
        "-o",
        str(out),
        "--json",
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)["summary"]
    assert data["status"] == {
        "rtl_generated": True,
        "rtl_verified": True,
        "netlist_verified": False,
        "bitstream_built": False,
        "tested_on_board": False,
    }
    assert data["accuracy"]["rtl_percent"] == data["accuracy"]["reference_percent"] >= 85
    assert data["fps"] >= 1000
    return out


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QONNX files of small networks, by name."""
    root = tmp_path_factory.mktemp("small")
    for name in ("mlp", "shufflenet-v2"):
        onnx.save(network(name)[1], root / f"{name}.onnx")
    return root


def test_demo_on_pynq(built: Path) -> None:
    record = json.loads((built / "build.json").read_text())
    assert record["measured"]["frames"] >= 108
    assert (
        abs(record["measured"]["interval"] - record["measured"]["predicted"]) <= 0.05 * record["measured"]["predicted"]
    )
    assert all(0 < s < 1 for s in record["share"].values())
    assert (built / "vivado" / "build.tcl").is_file() and (built / "package" / "golden.npz").is_file()
    assert not list(built.rglob("*.bit")), "no bitstream is claimed or there"


def test_verify_and_report(built: Path, tmp_path: Path) -> None:
    ran = deploy("verify", str(built))
    assert ran.code == 0 and "RTL equals the integer reference on fresh inputs" in ran.out, ran.out + ran.err
    assert deploy("report", str(built), "-o", str(tmp_path / "r")).code == 0
    page = next((tmp_path / "r").rglob("*.html")).read_text()
    for text in ("FPGA: pynq-z2", "features.0.0", "post-synthesis, Yosys", "Roofline", "rtl_verified"):
        assert text in page


def test_changed_rtl_is_found(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    file = copy / "rtl" / "dataflow.sv"
    file.write_text(file.read_text() + "\n")
    assert deploy("verify", str(copy)).code == 4


@pytest.mark.parametrize("name", sorted(b.name for b in boards.boards().values() if b.kind == "fpga"))
def test_every_board(small: Path, tmp_path: Path, name: str) -> None:
    ran = deploy(
        "build",
        str(small / "mlp.onnx"),
        "--board",
        name,
        "--target-fps",
        "2000",
        "-o",
        str(tmp_path / "b"),
        "--no-bitstream",
        "--json",
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)["summary"]
    assert data["status"]["rtl_verified"] and data["cells"]["lut"] > 0


def test_real_bitstream(small: Path, tmp_path: Path) -> None:
    """Yosys, nextpnr and ecppack, nothing pretended."""
    out = tmp_path / "b"
    ran = deploy(
        "build", str(small / "mlp.onnx"), "--board", "ulx3s-85f", "--target-fps", "2000", "-o", str(out), "--json"
    )
    assert ran.code == 0, ran.err
    bit = json.loads(ran.out)["summary"]["bitstream"]
    assert bit["fmax_mhz"] >= 25 and bit["used"]["TRELLIS_COMB"] > 500
    raw = (out / "bitstream" / "accelerator.bit").read_bytes()
    assert len(raw) == bit["bytes"] > 200_000 and b"LFE5U-85F" in raw[:200]
    assert (out / "package" / "accelerator.bit").read_bytes() == raw


def test_programming(small: Path, tmp_path: Path) -> None:
    """The package's own command calls openFPGALoader with the board and the file, and tells its failures."""
    out = tmp_path / "b"
    assert (
        deploy(
            "build",
            str(small / "mlp.onnx"),
            "--board",
            "ulx3s-85f",
            "--target-fps",
            "2000",
            "--no-utilization",
            "-o",
            str(out),
        ).code
        == 0
    )
    argv = [sys.executable, str(out / "package" / "accelerator.py"), "program"]
    bare = {**os.environ, "PATH": "/nowhere"}
    done = subprocess.run(argv, capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 2 and "openFPGALoader is not on PATH" in done.stderr
    tool = tmp_path / "openFPGALoader"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called; test -f "$3"\n')
    tool.chmod(0o755)
    here = {**os.environ, "PATH": f"{tmp_path}:/bin:/usr/bin"}
    assert subprocess.run(argv, capture_output=True, env=here, check=False).returncode == 0
    assert (tmp_path / "called").read_text().split()[:2] == ["-b", "ulx3s"]
    tool.write_text("#!/bin/sh\necho no board; exit 1\n")
    done = subprocess.run(argv, capture_output=True, text=True, env=here, check=False)
    assert done.returncode == 3 and "no board" in done.stderr


@pytest.mark.slow
def test_demo_bitstream(exported: Path, tmp_path: Path) -> None:
    ran = deploy(
        "build",
        str(exported),
        "--board",
        "ulx3s-85f",
        "--target-fps",
        "100",
        "--eval",
        TEST,
        "-o",
        str(tmp_path / "b"),
        "--json",
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["summary"]["status"]["bitstream_built"]


def test_rebuild_is_reused(small: Path, tmp_path: Path) -> None:
    argv = ("build", str(small / "mlp.onnx"), "--board", "pynq-z2", "--target-fps", "2000", "-o", str(tmp_path / "b"))
    assert deploy(*argv).code == 0
    again = deploy(*argv)
    assert again.code == 0 and "reused" in again.out


FAULTS = [
    ((), 2, "--board is missing; FPGA boards are pynq-z1"),
    (("--board", "host-cpu"), 2, "is no FPGA"),
    (("--board", "pynq-z3"), 2, "did you mean"),
    (("--board", "pynq-z2", "--target-fps", "1e9"), 4, "cannot be reached at 100 MHz"),
    (("--board", "pynq-z2", "--target-fps", "5", "--max-fps"), 2, "exclude each other"),
    (("--board", "pynq-z2", "--flow", "finn"), 2, "vivado"),
    (("--board", "pynq-z2", "--eval", "nowhere"), 2, "nowhere"),
]


@pytest.mark.parametrize(("argv", "code", "said"), FAULTS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else None)
def test_faults(small: Path, tmp_path: Path, argv: tuple[str, ...], code: int, said: str) -> None:
    out = tmp_path / "b"
    ran = deploy("build", str(small / "mlp.onnx"), *argv, "-o", str(out))
    assert ran.code == code and said in ran.err and "Traceback" not in ran.err
    assert not out.exists()


def test_deadlock_ends_with_4(small: Path, tmp_path: Path) -> None:
    ran = deploy(
        "build",
        str(small / "shufflenet-v2.onnx"),
        "--board",
        "pynq-z2",
        "--target-fps",
        "2000",
        "--fifo-depth",
        "2",
        "-o",
        str(tmp_path / "b"),
    )
    assert ran.code == 4 and "deadlocked, data waits at" in ran.err
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_built(tmp_path: Path, exported: Path) -> None:
    model = onnx.load(exported / "model.qonnx.onnx")
    for node in model.graph.node:
        if node.op_type == "MaxPool":
            node.op_type = "LpPool"
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", [2, 2]))
    onnx.save(model, tmp_path / "m.onnx")
    ran = deploy("build", str(tmp_path / "m.onnx"), "--board", "pynq-z2", "-o", str(tmp_path / "b"))
    assert ran.code == 2 and ran.err.count("(LpPool)") == 2 and "no hardware block" in ran.err
    ran = deploy("build", str(exported / "float.onnx"), "--board", "pynq-z2", "-o", str(tmp_path / "b"))
    assert ran.code == 2 and "no QONNX file" in ran.err
    (tmp_path / "short.onnx").write_bytes((exported / "model.qonnx.onnx").read_bytes()[:5000])
    assert deploy("build", str(tmp_path / "short.onnx"), "--board", "pynq-z2", "-o", str(tmp_path / "b")).code == 2


def test_design_that_does_not_fit(tmp_path: Path) -> None:
    """A layer whose weights alone are more than the part's memory."""
    import torch
    from helpers import exported as export
    from torch import nn

    from bench.networks import Net, ready
    from bench.networks import layer as quantized

    torch.manual_seed(0)
    net = ready(Net([nn.Flatten(), quantized(nn.Linear(4096, 2048), 8)], None, (1, 64, 64)))
    onnx.save(export(net, net.shape), tmp_path / "large.onnx")
    ran = deploy("build", str(tmp_path / "large.onnx"), "--board", "pynq-z2", "-o", str(tmp_path / "b"))
    assert ran.code == 4 and "does not fit pynq-z2" in ran.err and "body.1 costs most" in ran.err


@pytest.mark.parametrize("name", ["pyosys", "verilator", "finn"])
def test_missing_package_is_told(small: Path, tmp_path: Path, name: str) -> None:
    """A package that is not installed, as this process sees it."""
    code = (
        "import importlib.util as u, sys; real = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n == {name!r} else real(n, *a)\n"
        "from deploy.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    argv = ["build", str(small / "mlp.onnx"), "--board", "pynq-z2", "--target-fps", "2000", "-o", str(tmp_path / "b")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=env, check=False)
    assert (
        done.returncode == 2
        and "pip install 'deploy-toolchain[fpga]'" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_place_and_route_that_dies_ends_with_3(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "nextpnr"
    dying.write_text("#!/bin/sh\necho placing; echo 'ERROR: out of luck' >&2; exit 9\n")
    dying.chmod(0o755)
    real = ecp5.tool
    monkeypatch.setattr(
        ecp5,
        "tool",
        lambda name: real(name) if name != "nextpnr-ecp5" else type(real(name))("nextpnr-ecp5", path=str(dying)),
    )
    ran = deploy(
        "build", str(small / "mlp.onnx"), "--board", "ulx3s-85f", "--target-fps", "2000", "-o", str(tmp_path / "b")
    )
    assert ran.code == 3 and "nextpnr-ecp5 failed with exit code 9" in ran.err and "out of luck" in ran.err
    assert not (tmp_path / "b").exists()


def test_vivado_is_run_where_it_is_found(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named vivado that does what build.tcl promises, and one that fails."""
    tools = tmp_path / "bin"
    tools.mkdir()
    vivado = tools / "vivado"
    vivado.write_text("#!/bin/sh\ntest -f build.tcl && echo bits > accelerator.bit && echo '<x/>' > accelerator.hwh\n")
    vivado.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    argv = (
        "build",
        str(small / "mlp.onnx"),
        "--board",
        "pynq-z1",
        "--target-fps",
        "2000",
        "--no-utilization",
        "--json",
    )
    ran = deploy(*argv, "-o", str(tmp_path / "good"))
    assert ran.code == 0 and json.loads(ran.out)["summary"]["status"]["bitstream_built"], ran.err
    assert (tmp_path / "good" / "package" / "accelerator.hwh").is_file()
    vivado.write_text("#!/bin/sh\necho 'ERROR: [Place 30-640]'; exit 1\n")
    ran = deploy(*argv, "-o", str(tmp_path / "bad"))
    assert ran.code == 3 and "vivado failed" in ran.err and "Place 30-640" in ran.err


def test_finn_flow_that_dies_ends_with_3(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FINN's own build is started where its tools are on PATH; these cannot do the work, and FINN's failure is told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("vivado", "vitis_hls"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    ran = deploy(
        "build",
        str(small / "mlp.onnx"),
        "--board",
        "pynq-z2",
        "--target-fps",
        "2000",
        "--no-utilization",
        "--flow",
        "finn",
        "-o",
        str(tmp_path / "b"),
    )
    assert ran.code == 3 and "finn-plus failed" in ran.err
    assert not (tmp_path / "b").exists()


def test_tools_are_found_beside_this_python() -> None:
    assert verilator.find().find() is not None
    assert ecp5.tool("nextpnr-ecp5").find() is not None
    assert synthesize.yosys_version()


def test_golden_vectors_are_the_reference(built: Path) -> None:
    from hw.fpga import reference
    from hw.fpga.rebuilt import rebuild

    graph, _, _ = rebuild(built)
    data = np.load(built / "package" / "golden.npz")
    want = reference.execute(graph, {graph.inputs[0].tensor: data["inputs"]})[graph.outputs[0].tensor]
    assert np.array_equal(want, data["outputs"])
