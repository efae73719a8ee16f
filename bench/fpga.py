"""FPGA builds, measured: the demonstration model for every board, the named networks, the ULX3S bitstream.

    python -m bench.fpga demo | networks | ulx3s | rebuild      -> bench/fpga_<part>.json

Every figure is simulated (Verilator), synthesized (Yosys) or placed (nextpnr); nothing ran on a board.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from bench.common import save, stamp
from bench.networks import NAMED, Net
from deploy.cli import main as deploy
from deploy.inputs import InputSpec
from export.torch2onnx import export_quantized

HERE = Path(__file__).parent
FASHION = HERE.parent / "examples" / "fashion"
BOARDS = ("pynq-z1", "pynq-z2", "ultra96", "ultra96-v2", "ulx3s-85f")


def _run(*argv: str) -> None:
    code = deploy([*argv, "-q"])
    if code:
        sys.exit(f"deploy {' '.join(argv)} ended with {code}")


def _row(folder: Path, seconds: float) -> dict[str, Any]:
    record = json.loads((folder / "build.json").read_text())
    keys = (
        "board",
        "clock_mhz",
        "fps",
        "measured",
        "cells",
        "share",
        "accuracy",
        "status",
        "bitstream",
        "flat",
        "cached_layers",
    )
    row = {k: record[k] for k in keys}
    row["finn_interval"] = record["finn_estimate"]["interval"]
    row["estimate"] = record["estimate"]
    row["seconds"] = round(seconds, 1)
    return row


def _build(model: str, folder: Path, *argv: str) -> dict[str, Any]:
    start = time.monotonic()
    _run("build", model, "-o", str(folder), *argv)
    return _row(folder, time.monotonic() - start)


def _exports(root: Path) -> dict[str, str]:
    found = {}
    for bits in (4, 8):
        _run(
            "compress",
            str(FASHION / "fashion_cnn.safetensors"),
            "--bits",
            str(bits),
            "--calib",
            str(FASHION / "calib.npz"),
            "-o",
            str(root / f"c{bits}"),
        )
        _run("export", str(root / f"c{bits}"), "-o", str(root / f"e{bits}"))
        found[f"W{bits}A8"] = str(root / f"e{bits}")
    return found


def demo(root: Path) -> dict[str, Any]:
    """The Fashion-MNIST CNN at W4A8 and W8A8 on every board; RTL on 100 test images; no bitstream (see ulx3s)."""
    rows = {}
    for name, model in _exports(root).items():
        for board in BOARDS:
            fps = {"W4A8": "200", "W8A8": "50"}[name] if board == "ulx3s-85f" else "1000"
            rows[f"{name} {board}"] = _build(
                model,
                root / f"{name}-{board}",
                "--board",
                board,
                "--target-fps",
                fps,
                "--eval",
                str(FASHION / "test1000.npz"),
                "--frames",
                "100",
                "--no-bitstream",
            )
            print(name, board, json.dumps(rows[f"{name} {board}"]["cells"]), flush=True)
            save("fpga_demo", {**stamp(), "rows": rows})
    return rows


def _qonnx(net: Net, path: Path) -> str:
    onnx.save(export_quantized(net, [InputSpec("x", (1, *net.shape), "float32")])[0], path)
    return str(path)


def networks(root: Path) -> dict[str, Any]:
    """The named networks on pynq-z2 and ultra96 as fast as they fit; ResNet-8 also at 1,300 frames/s."""
    rows = {}
    for name, make in NAMED.items():
        bits: dict[str, dict[str, int]] = {" W2A2" if name == "mlp" else "": {}, " W8A8": {"wb": 8, "ab": 8}}
        if name == "mobilenet-v1":
            bits[" signed"] = {"signed": 1}
        for label, how in bits.items():
            model = _qonnx(make(**how), root / f"{name}{label}.onnx")
            for board in ("pynq-z2", "ultra96"):
                fps = ("--target-fps", "1300" if name == "resnet-8" else "2000")
                rows[f"{name}{label} {board}"] = _build(
                    model, root / f"{name}{label}-{board}", "--board", board, *fps, "--no-bitstream"
                )
                print(name, label, board, rows[f"{name}{label} {board}"]["fps"], flush=True)
    for name in ("resnet-8", "mobilenet-v1"):
        rows[f"{name} fastest pynq-z2"] = _build(
            str(root / f"{name}.onnx"), root / f"{name}-fastest", "--board", "pynq-z2", "--max-fps", "--no-bitstream"
        )
    return rows


def ulx3s(root: Path) -> dict[str, Any]:
    """The demonstration model at W4A8 as a real bitstream for the ULX3S; takes ten minutes of nextpnr."""
    model = _exports(root)["W4A8"]
    return {
        "W4A8 ulx3s-85f": _build(
            model,
            root / "ulx3s",
            "--board",
            "ulx3s-85f",
            "--target-fps",
            "100",
            "--eval",
            str(FASHION / "test1000.npz"),
        )
    }


def rebuild(root: Path) -> dict[str, Any]:
    """Wall time on pynq-z2 of the demonstration model with empty caches, with one weight of one layer changed, and unchanged."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    export = Path(_exports(root)["W4A8"])
    model = onnx.load(export / "model.qonnx.onnx")
    values = {i.name: i for i in model.graph.initializer}
    node = next(
        n for n in model.graph.node if n.op_type == "Quant" and "features.4" in n.name + n.input[0] and n.input[0] in values and len(values[n.input[0]].dims) == 4
    )  # fmt: skip
    weight, scale = (numpy_helper.to_array(values[n]).copy() for n in node.input[:2])
    weight[0, 0, 0, 0] += scale.reshape(-1)[0] * (1 if weight[0, 0, 0, 0] <= 0 else -1)
    values[node.input[0]].CopyFrom(numpy_helper.from_array(weight, node.input[0]))
    onnx.save(model, root / "changed.onnx")
    rows = {}
    for name, source in (
        ("cold", export),
        ("one layer changed", root / "changed.onnx"),
        ("unchanged", root / "changed.onnx"),
    ):
        row = _build(
            str(source), root / f"built-{name}", "--board", "pynq-z2", "--target-fps", "1000", "--eval", str(FASHION / "test1000.npz"), "--frames", "100",
        )  # fmt: skip
        rows[name] = {k: row[k] for k in ("seconds", "cached_layers")}
        print(name, rows[name], flush=True)
    return rows


if __name__ == "__main__":
    part = {f.__name__: f for f in (demo, networks, ulx3s, rebuild)}[sys.argv[1]]
    with tempfile.TemporaryDirectory() as made:
        save(f"fpga_{sys.argv[1]}", {**stamp(), "rows": part(Path(made))})
