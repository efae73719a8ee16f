"""FINN's own cycle estimate of a design: every layer as FINN hardware nodes, asked for their expected cycles.

FINN runs in a process of its own (finn_worker.py): its import wants settings, and its side effects stay there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boards.board import Board
from deploy.errors import UserError
from deploy.tools import Tool, run
from hw.fpga import ir
from hw.fpga.blocks.base import Fold, padded

RTL, GENERIC = "finn.custom_op.fpgadataflow.rtl", "finn.custom_op.fpgadataflow"
FinnNode = tuple[str, str, dict[str, Any]]


def _type(t: ir.Tensor) -> str:
    return f"{'INT' if t.signed else 'UINT'}{t.bits}"


def _window(x: ir.Tensor, window: ir.Window, simd: int, depthwise: bool, parallel: bool = False) -> list[FinnNode]:
    """Padding and sliding window in front of a product or a pooling."""
    h, w, c = x.shape
    top, left, bottom, right = window.pads
    nodes: list[FinnNode] = []
    if any(window.pads):
        nodes.append(
            (
                "FMPadding_rtl",
                RTL,
                {
                    "ImgDim": [h, w],
                    "Padding": list(window.pads),
                    "NumChannels": c,
                    "SIMD": simd,
                    "inputDataType": _type(x),
                    "numInputVectors": 1,
                },
            )
        )
    if window.size > 1 or window.stride != (1, 1):
        nodes.append(
            (
                "ConvolutionInputGenerator_rtl", RTL,
                {"ConvKernelDim": list(window.kernel), "IFMChannels": c, "IFMDim": [h + top + bottom, w + left + right], "OFMDim": list(window.output(h, w)), "SIMD": simd,
                 "Stride": list(window.stride), "Dilation": list(window.dilation), "inputDataType": _type(x), "outputDataType": _type(x),
                 "depthwise": int(depthwise), "parallel_window": int(parallel)},
            )
        )  # fmt: skip
    return nodes


def finn_nodes(graph: ir.Graph, node: ir.Node, fold: Fold) -> list[FinnNode]:
    """A layer in FINN's vocabulary; empty for what FINN does not have (shuffles, deformable windows) or does on the host."""
    x, out, op = graph.tensors[node.inputs[0]], graph.tensors[node.output], node.op
    vectors = [1, *out.shape[:2]]
    kinds = {"inputDataType": _type(x), "outputDataType": _type(out)}
    match op:
        case ir.Conv(depthwise=True):
            attributes = {"PE": fold.pe, "SIMD": fold.simd, "Dim": list(out.shape[:2]), "Channels": x.channels, "Kernel": list(op.window.kernel), "weightDataType": f"INT{op.weight_bits}",
                          "accDataType": _type(out), "noActivation": 1, "mem_mode": "internal_decoupled", **kinds}  # fmt: skip
            before = [] if op.bound else _window(x, op.window, fold.pe, True, fold.form == "lines")
            return [*before, ("VVAU", GENERIC, attributes)]
        case ir.Conv():
            wide = replace(
                x, shape=(*x.shape[:2], padded(x.channels, fold.simd))
            )  # FINN's parallelism divides its channels
            attributes = {"MW": wide.channels * op.window.size, "MH": padded(out.channels, fold.pe), "SIMD": fold.simd, "PE": fold.pe, "weightDataType": f"INT{op.weight_bits}", "accDataType": _type(out),
                          "noActivation": 1, "numInputVectors": vectors, "mem_mode": "internal_decoupled", **kinds}  # fmt: skip
            before = [] if op.bound else _window(wide, op.window, fold.simd, False)
            return [*before, ("MVAU_rtl", RTL, attributes)]
        case ir.Thresholds() | ir.Scale() | ir.Table():
            return [
                (
                    "Thresholding_rtl",
                    RTL,
                    {
                        "NumChannels": out.channels,
                        "PE": fold.pe,
                        "numSteps": max(1, out.high - out.low),
                        "weightDataType": _type(x),
                        "numInputVectors": vectors,
                        "ActVal": 0,
                        **kinds,
                    },
                )
            ]
        case ir.Pool():
            attributes = {"Channels": x.channels, "PE": fold.pe, "KernelSize": list(op.window.kernel), "Function": "MaxPool", "OutImgDims": list(out.shape[:2]), "InputDataType": _type(x),
                          "OutputDataType": _type(out), "AccumBits": 0, "Size": 1, "BatchSize": 1}  # fmt: skip
            return [*_window(x, op.window, fold.pe, True), ("Pool", GENERIC, attributes)]
        case ir.GlobalPool():
            return [
                (
                    "GlobalAccPool",
                    GENERIC,
                    {
                        "NumChannels": x.channels,
                        "PE": fold.pe,
                        "inputDataType": _type(x),
                        "numInputVectors": [1, *x.shape[:2]],
                    },
                )
            ]
        case ir.Add():
            shape = [1, *out.shape]
            return [("ElementwiseAdd", GENERIC, {"lhs_dtype": _type(x), "rhs_dtype": _type(graph.tensors[node.inputs[1]]), "out_dtype": _type(out), "lhs_shape": shape, "rhs_shape": shape,
                                                 "out_shape": shape, "lhs_style": "input", "rhs_style": "input", "PE": fold.pe, "inFIFODepths": [2, 2]})]  # fmt: skip
        case ir.Concat():
            parts = [graph.tensors[t] for t in node.inputs]
            return [
                (
                    "StreamingConcat",
                    GENERIC,
                    {
                        "SIMD": fold.pe,
                        "ChannelsPerStream": [p.channels for p in parts],
                        "inputDataTypes": [_type(p) for p in parts],
                        "numInputVectors": vectors,
                        "inFIFODepths": [2] * len(parts),
                    },
                )
            ]
        case ir.TopK():
            return [
                (
                    "LabelSelect",
                    GENERIC,
                    {"Labels": x.channels, "PE": fold.pe, "K": op.k, "numInputVectors": vectors, **kinds},
                )
            ]
        case ir.Upsample():
            return [
                (
                    "UpsampleNearestNeighbour",
                    GENERIC,
                    {
                        "HO": out.shape[0],
                        "WO": out.shape[1],
                        "HI": x.shape[0],
                        "WI": x.shape[1],
                        "NumChannels": x.channels,
                        "SIMD": fold.pe,
                        "inputDataType": _type(x),
                        "batchSize": 1,
                    },
                )
            ]
    return []


def cycles(graph: ir.Graph, folds: Mapping[str, Fold]) -> dict[str, Any]:
    """{"layers": {name: cycles}, "interval": most, "latency": sum}: what FINN's get_exp_cycles says. Raises ToolError when FINN fails."""
    job = {n.name: finn_nodes(graph, n, folds[n.name]) for n in graph.nodes}
    with tempfile.TemporaryDirectory(prefix="deploy-finn-") as made:
        work = Path(made)
        (work / "job.json").write_text(json.dumps(job))
        env = {
            **os.environ,
            "FINN_BUILD_DIR": made,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH", "")])]
            ),
        }
        out = work / "result.json"
        run(
            Tool("finn-plus", path=sys.executable),
            ["-m", "hw.fpga.finn_worker", "job.json", "result.json"],
            cwd=work,
            log=work / "finn.log",
            outputs=(out,),
            timeout=300,
            env=env,
        )
        rows = json.loads(out.read_text())
    flat = [c for row in rows.values() for c in row]
    return {
        "layers": {n: max(r, default=0) for n, r in rows.items()},
        "interval": max(flat, default=0),
        "latency": sum(flat),
    }


def build(model: Path, board: Board, clock: float, fps: float, folder: Path) -> dict[str, Any]:
    """FINN's own build of a QONNX file to a bitstream, in a process of its own. Raises ToolError with FINN's last lines."""
    if not board.finn:
        raise UserError(f"FINN knows no board {board.name}; leave --flow finn out")
    folder.mkdir(parents=True)
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "model": str(model),
                "board": board.finn,
                "clock_mhz": clock,
                "target_fps": fps,
                "output": str(folder / "finn"),
            }
        )
    )
    env = {**os.environ, "FINN_BUILD_DIR": str(folder / "work")}
    bit = folder / "finn" / "bitfile" / "finn-accel.bit"
    seconds = run(
        Tool("finn-plus", path=sys.executable),
        ["-m", "hw.fpga.finn_worker", "build", str(job)],
        cwd=folder,
        log=folder / "finn.log",
        outputs=(bit,),
        timeout=8 * 3600,
        env=env,
    )
    return {
        "file": "finn/finn/bitfile/finn-accel.bit",
        "bytes": bit.stat().st_size,
        "seconds": seconds,
        "tool": "finn-plus with vivado",
    }


def require_vendor_tools() -> None:
    """FINN's own flow needs AMD's tools. Raises UserError that says which is missing."""
    if importlib.util.find_spec("finn") is None:
        raise UserError("--flow finn needs finn-plus; pip install 'deploy-toolchain[fpga]'")
    missing = [
        t
        for t in ("vivado", "vitis_hls")
        if shutil.which(t) is None and not (t == "vitis_hls" and shutil.which("vitis-run"))
    ]
    if missing:
        raise UserError(
            f"--flow finn needs {' and '.join(missing)} on PATH (FINN makes its DMA with Vitis HLS); leave it out for the RTL flow"
        )
