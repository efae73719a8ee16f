"""Built folders: the design again from what was recorded, and `deploy verify` of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import boards
from deploy.errors import BoundError, UserError
from export import onnxfile
from export.stage import QONNX
from hw.fpga import fold, ir, library, package, simulate
from hw.fpga.assemble import assemble
from hw.fpga.lower import lower
from hw.fpga.netlist import Netlist

RECORD = "build.json"


def rebuild(folder: Path) -> tuple[ir.Graph, Netlist, dict[str, Any]]:
    """The graph and netlist of a built folder, from its QONNX file and recorded folds. Raises UserError when it is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        folds = {k: fold.Fold(**v) for k, v in record["folds"].items()}
        board = boards.get(record["board"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is no build folder: {RECORD} is missing or damaged; run deploy build again"
        ) from None
    graph = lower(onnxfile.load(folder / QONNX, check=False), record["top_k"]).graph
    return graph, assemble(graph, folds, fold.target_of(board), record["depths"]), record


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the RTL on disk is the design's, and still equals the reference on fresh inputs."""
    graph, net, record = rebuild(folder)
    same = all(
        (folder / "rtl" / n).is_file() and (folder / "rtl" / n).read_text() == t
        for n, t in library.sources(net).items()
    )
    rows = [("RTL on disk is generated from model.qonnx.onnx", same, f"{len(library.sources(net))} files")]
    with tempfile.TemporaryDirectory(prefix="deploy-verify-") as scratch:
        try:
            measured, _ = simulate.verify(graph, net, simulate.random_inputs(graph, 4, seed + 1), Path(scratch), seed)
            rows.append(
                (
                    "RTL equals the integer reference on fresh inputs",
                    True,
                    f"{measured.integers} integers, {measured.interval:.0f} cycles a frame",
                )
            )
        except BoundError as error:
            rows.append(("RTL equals the integer reference on fresh inputs", False, str(error)))
    rows.append(("hash chain of the board package", package.check(folder / "package"), record["hash"]))
    return rows
