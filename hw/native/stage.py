"""`deploy native` as a stage: compile, link, prove."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from deploy.errors import BoundError, ToolError
from deploy.inputs import InputSpec
from deploy.report.sections import Section, Table
from deploy.tools import Tool, run
from export import onnxfile, parity
from export.stage import FLOAT, RUNTIME, read_record
from hw.candidates import specs_of
from hw.native.compile import OBJECT, PLAN, WEIGHTS
from hw.native.folder import PROGRAM, RECORD, Folder, agreement
from hw.native.processors import Processor, of_board
from hw.runtime import runtimes
from hw.runtime.tvm.compile import PERMIT, REFUSED
from hw.runtime.tvm.compile import RECORD as KERNELS
from hw.runtime.tvm.runtime import COMPILE_SECONDS

SOURCE = "runner.cpp"
FLOAT_BOUND = 1e-5
_PYTHON = Tool(sys.executable)


def _model(path: Path, want_float: bool) -> tuple[onnx.ModelProto, tuple[InputSpec, ...]]:
    if path.is_dir():
        record = read_record(path)
        file = path / (FLOAT if want_float or not (path / RUNTIME).is_file() else RUNTIME)
        return onnxfile.load(file), tuple(InputSpec.from_json(r) for r in record["inputs"])
    model = onnxfile.load(path)
    return model, specs_of(model)


def build(model: onnx.ModelProto, processor: Processor, folder: Path) -> None:
    """model.o, plan and weights by a child process, then the program. Raises ToolError with the tool's last lines."""
    compiler = processor.compiler.require()
    source, log = folder / "model.onnx", folder / "compile.log"
    source.write_bytes(model.SerializeToString())
    try:
        run(
            _PYTHON, ["-m", "hw.native.compile", str(source), str(folder), processor.name], cwd=folder, log=log,
            outputs=(folder / OBJECT, folder / PLAN), timeout=COMPILE_SECONDS,
        )  # fmt: skip
    except ToolError as error:
        said = [x.removeprefix(REFUSED) for x in error.log.splitlines() if x.startswith(REFUSED)]
        raise ToolError(said[-1] if said else f"TVM could not compile the model: {error}", error.log) from error
    shutil.copy(Path(__file__).with_name(SOURCE), folder / SOURCE)
    sources = [SOURCE, str(PERMIT)] if processor.machine.amx else [SOURCE]
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-Wno-psabi", *processor.flags]
    run(
        Tool(compiler), [*flags, *sources, OBJECT, "-o", PROGRAM], cwd=folder, log=log, outputs=(folder / PROGRAM,), timeout=600
    )  # fmt: skip
    source.unlink()
    log.unlink()


def run_stage(config: Any, folder: Path) -> dict[str, Any]:
    """Write the folder and its proof. Raises BoundError where the folder computes something else than this computer."""
    processor = of_board(config.board)
    if processor.emulator is not None:
        processor.emulator[0].require()
    model, specs = _model(Path(config.model), config.float)
    from hw.runtime.tvm.runtime import fixed

    model = fixed(model, [s.shape for s in specs])
    build(model, processor, folder)
    record: dict[str, Any] = {
        "processor": processor.name,
        "board": config.board,
        "inputs": [s.to_json() for s in specs],
    }
    (folder / RECORD).write_text(json.dumps(record) + "\n")
    made = Folder(folder)
    rows = parity.fresh(specs, 3, config.seed + 7)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        here = runtimes()["tvm"].load(model, 1, work)
        got, want = [], []
        for row in rows:
            got.append(made.execute(processor, row, work)[0])
            want.append(here.run(row))
    if not parity.varies([row[0] for row in want]):
        raise BoundError("the model gives the same output for every input; nothing is proven by it")
    worst, equal, steps = agreement(got, want)
    integers = any(t.dtype in ("uint8", "int8") for t in made.plan.tensors)
    bound = FLOAT_BOUND if not integers else 0.02
    if not worst <= bound:
        raise BoundError(
            f"the folder for {processor.name} differs from this computer's result by {worst:.1e} of its largest output (bound {bound:g})"
        )
    proof = (
        "bit for bit equal"
        if equal
        else f"largest difference {worst:.1e} of the largest output, {steps} of {sum(a.size for row in got for a in row)} values"
    )
    kernels = json.loads((folder / KERNELS).read_text())["kernels"]
    record |= {
        "kernels": len(kernels),
        "calls": sum(x.startswith("c ") for x in (folder / PLAN).read_text().splitlines()),
        "program_bytes": (folder / PROGRAM).stat().st_size,
        "weight_bytes": (folder / WEIGHTS).stat().st_size,
        "arena_bytes": int((folder / PLAN).read_text().split(maxsplit=5)[4]),
        "how": "on this computer" if processor.emulator is None else processor.emulator[0].name,
        "proof": proof,
        "equal": equal,
        "difference": worst,
        "plain_loops": [k["name"] for k in kernels if k["rule"] == "plain loops"],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def section(folder: Path, manifest: dict[str, Any]) -> Section:
    """Sizes and the proof; no latency: an emulator has none."""
    record = json.loads((folder / RECORD).read_text())
    rows = (
        ("program", f"{record['program_bytes']:,}"),
        ("weights (memory-mapped)", f"{record['weight_bytes']:,}"),
        ("arena", f"{record['arena_bytes']:,}"),
    )
    facts = (
        ("board", record["board"]),
        ("processor", record["processor"]),
        ("kernels", str(record["kernels"])),
        ("proof", f"{record['proof']} ({record['how']})"),
    )
    remarks = (
        ("an emulator proves results, not speed: measure on the board with deploy profile --remote",)
        if record["how"] != "on this computer"
        else ()
    )
    return Section("Standalone folder", "", facts, (Table("Sizes", ("what", "bytes"), rows),), remarks, record)


def check_folder(folder: Path, seed: int, arch: str = "") -> list[tuple[str, bool, str]]:
    """Rows for `deploy verify`: the folder runs and varies on fresh inputs."""
    made = Folder(folder)
    processor = of_board(made.record["processor"])
    specs = tuple(InputSpec.from_json(r) for r in made.record["inputs"])
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [made.execute(processor, row, Path(scratch))[0][0] for row in parity.fresh(specs, 2, seed + 3)]
    return [("the program runs, outputs vary", parity.varies(outputs), made.record["how"])]
