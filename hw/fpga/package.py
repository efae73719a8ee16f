"""The board package: bitstream where there is one, a driver with no dependency on this project, golden vectors, the hash chain."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from boards.board import Board
from deploy.arch import Preprocess
from deploy.artifact import sha256_file
from hw.fpga import ir, library, memory, words, zynq
from hw.fpga.netlist import Netlist, Stream, axis_width
from hw.fpga.simulate import Measured

DRIVER = Path(__file__).with_name("driver")
GOLDEN = 8  # frames


def sha256(path: Path) -> str:
    return sha256_file(path)


def design_hash(chain: dict[str, str], net: Netlist) -> str:
    """One hash of the model's files and of the RTL with its memories."""
    rtl = library.digest(
        {**library.sources(net), **net.files, **({"memory.bin": memory.image(net).hex()} if net.stored else {})}
    )
    return hashlib.sha256(json.dumps([sorted(chain.items()), rtl]).encode()).hexdigest()


def _stream(stream: Stream, dma: bool) -> dict[str, Any]:
    width = axis_width(stream)
    return {
        "elements": stream.par, "bits": stream.bits, "signed": stream.signed, "beats": stream.beats,
        "word_bytes": (zynq.dma_bits(width) if dma else width) // 8,
    }  # fmt: skip


def write(
    folder: Path, graph: ir.Graph, net: Netlist, board: Board, clock: float, inputs: dict[str, np.ndarray], values: dict[str, np.ndarray],
    chain: dict[str, str], hash_: str, bit: dict[str, Any] | None, measured: Measured, preprocess: Preprocess,
) -> None:  # fmt: skip
    """Write the package. inputs: integer golden inputs by tensor; values: every tensor of the reference for them."""
    folder.mkdir(parents=True)
    link = "serial" if board.family == "ecp5" else "pynq"
    source, out = graph.inputs[0], graph.outputs[0]
    tensor = graph.tensors[source.tensor]
    meta = {
        "format": 1, "board": board.name, "part": board.part, "clock_mhz": clock, "link": link, "design": hash_,
        "loader": board.loader, "chain": chain,
        "input": {**_stream(net.inputs[0], link == "pynq"), "shape": list(tensor.shape), "low": tensor.low, "high": tensor.high, "scale": source.scale,
                  "gain": source.gain.tolist(), "offset": source.offset.tolist(), "float_shape": list(source.shape[1:]), "preprocess": preprocess.to_json()},
        "output": {**_stream(net.outputs[0], link == "pynq"), "shape": list(graph.tensors[out.tensor].shape), "scale": out.scale.tolist(), "offset": out.offset.tolist(),
                   "order": out.order.tolist(), "float_shape": list(out.shape), "after": [list(a) for a in out.after], "labels": out.labels},
        "simulated": {"interval_cycles": measured.interval, "first_frame_cycles": measured.first_frame},
    }  # fmt: skip
    np.savez_compressed(folder / "golden.npz", inputs=inputs[source.tensor], outputs=values[out.tensor])
    words_in = words.to_words(inputs[source.tensor], net.inputs[0])
    width = axis_width(net.inputs[0]) // 8
    meta["golden_first_word"] = words_in[0].to_bytes(width, "little").hex()
    files = ["golden.npz", "accelerator.py"]
    shutil.copy(DRIVER / "accelerator.py", folder)
    for name in (f"{link}_link.py",):
        shutil.copy(DRIVER / name, folder)
        files.append(name)
    if net.stored:
        (folder / "memory.bin").write_bytes(memory.image(net))
        meta["memory"] = "memory.bin"
        files.append("memory.bin")
    if bit is not None:
        for suffix in (".bit", ".hwh"):
            built = (folder.parent / bit["file"]).with_suffix(suffix)
            if built.is_file():
                shutil.copy(built, folder / f"accelerator{suffix}")
                files.append(f"accelerator{suffix}")
    meta["files"] = {n: sha256(folder / n) for n in files}
    (folder / "package.json").write_text(json.dumps(meta, indent=1) + "\n")


def check(folder: Path) -> bool:
    """Whether every file of a package has the hash that its package.json records."""
    try:
        meta = json.loads((folder / "package.json").read_text())
        return all(sha256(folder / n) == h for n, h in meta["files"].items())
    except (OSError, ValueError, KeyError):
        return False
