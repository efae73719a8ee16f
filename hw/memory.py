"""Memory of one candidate, in a process of its own: what loading and running it add to a process that has its libraries."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from deploy.tools import Tool, run
from hw.runtime import runtimes

_PYTHON = Tool(sys.executable)


def memory(
    model: onnx.ModelProto, runtime: str, threads: int, values: list[np.ndarray], database: str = ""
) -> dict[str, float]:
    """Megabytes (1e6): `peak` added while loading from Python and running, `held` privately when it has run and the file's copies in Python are gone (mapped
    weights, which the system may drop, not counted). Raises ToolError."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        np.savez(folder / "values.npz", *values)
        log = folder / "memory.log"
        run(
            _PYTHON, ["-m", "hw.memory", str(folder), runtime, str(threads), database], cwd=folder, log=log, timeout=900
        )
        rows = [x for x in log.read_text().splitlines() if x.startswith("{")]
        found: dict[str, float] = json.loads(rows[-1])
        return found


def _held(field: str) -> float:
    """VmRSS, RssAnon (now, all or private) or VmHWM (peak) of this process, MB."""
    text = Path("/proc/self/status").read_text()
    return float(next(x.split()[1] for x in text.splitlines() if x.startswith(field))) * 1024 / 1e6


def _forget_peak() -> float:
    """Start a new peak here (proc(5), clear_refs); returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _held("VmRSS")


def main(place: str, runtime: str, threads: str, database: str = "") -> int:
    folder = Path(place)
    stored = np.load(folder / "values.npz")
    values = [stored[n] for n in stored.files]
    tiny = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 4))],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 4))],
        ), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10,
    )  # fmt: skip
    (folder / "tiny").mkdir()
    found = runtimes()[runtime]
    found.load(tiny, int(threads), folder / "tiny").run([np.ones((1, 4), np.float32)])
    before = _forget_peak()
    (folder / "real").mkdir()
    private = _held("RssAnon")
    model = onnx.load(folder / "model.onnx")
    program = found.load(model, int(threads), folder / "real", **({"database": database} if database else {}))
    del model
    program.run(values)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    sys.stdout.write(json.dumps({"peak": _held("VmHWM") - before, "held": _held("RssAnon") - private}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
