"""Bounded tuning of register tiles, in one child process: `python -m hw.runtime.tvm.tune MODEL.onnx DATABASE.json SECONDS`.

For every product and convolution of a model, the tiles that the cost model likes best are compiled in one module and timed in turns. A tile enters the
database only where it is at least MARGIN faster than the rule's own, measured again on its own. The database is JSON, by machine and workload: it serves
every model with that workload, and can be copied between computers of the same machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.artifact import write_file
from deploy.errors import UserError
from hw.runtime.tvm.machine import Machine, host
from hw.runtime.tvm.rules import conv, dot, matmul, qconv, qmatmul
from hw.runtime.tvm.rules.tile import Tile, candidates, workload

MARGIN, TRIED, ROUNDS = 0.05, 6, 15
SCHEMA = 1


@dataclass(frozen=True)
class Workload:
    """kind: the rule. shapes: what its expression is made from, as the importer gave it."""

    kind: str
    shapes: tuple[Any, ...]

    @property
    def key(self) -> str:
        return workload(self.kind, self.shapes)


def read(path: Path, machine: Machine) -> dict[str, Tile | None]:
    """The tiles of a machine, None for workloads where the rule's own won. Raises UserError for a file that is no database."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise UserError(
                f"{path} is a tuning database of schema {data['schema']}, this version reads {SCHEMA}; delete it"
            )
        rows = data["machines"].get(machine.name, {})
        found = {k: None if row["tile"] is None else Tile(**row["tile"]) for k, row in rows.items()}
        if not all(isinstance(v, int) for t in found.values() if t is not None for v in vars(t).values()):
            raise ValueError("a tile has five whole numbers")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no tuning database ({type(error).__name__}); delete it, or name another") from error


def write(path: Path, machine: Machine, rows: dict[str, dict[str, Any]]) -> None:
    """Add a machine's rows to a database; writers take turns."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"schema": SCHEMA, "machines": {}}
        data["machines"].setdefault(machine.name, {}).update(rows)
        write_file(path, (json.dumps(data, indent=1) + "\n").encode())


def workloads(model: onnx.ModelProto, machine: Machine) -> list[Workload]:
    """Every tiled kernel of a model, once."""
    from hw.runtime.tvm.graph import Graph
    from hw.runtime.tvm.prepare import prepare

    seen: dict[str, Workload] = {}

    def note(kind: str, shapes: tuple[Any, ...], _tuned: bool) -> None:
        item = Workload(kind, shapes)
        seen.setdefault(item.key, item)

    Graph(prepare(model), replace(machine, asked=note)).module()
    return list(seen.values())


def kernel(work: Workload, tile: Tile, machine: Machine) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
    """The scheduled kernel of a workload with a tile, and the shapes and types of its arguments (result last)."""
    from tvm import te

    from hw.runtime.tvm.schedule import schedule_kernel

    if work.kind in ("conv", "qconv"):
        image, weight, out, strides, pads, dilations = (tuple(s) for s in work.shapes)
        if work.kind == "conv":
            packed, build = (
                conv.pack(np.zeros(weight, np.float32), tile),
                conv.compute(out, tile, strides, pads, dilations),
            )
        else:
            packed = qconv.pack(np.zeros(weight, np.int8), tile)
            build = qconv.compute(out, tile, strides, pads, dilations, 128, dot.factor(machine))
        left, result = image, out
    else:
        left, (columns,) = (tuple(s) for s in work.shapes)
        depth = left[-1]
        if work.kind == "matmul":
            packed, build = (
                matmul.pack(np.zeros((depth, columns), np.float32), tile),
                matmul.compute(left, columns, tile),
            )
        else:
            packed = qmatmul.pack(np.zeros((depth, columns), np.int8), tile)
            build = qmatmul.compute(left, columns, tile, dot.factor(machine))
        result = (*left[:-1], columns)
    kinds = ("uint8", "int8", "int32") if work.kind.startswith("q") else ("float32",) * 3
    a = te.placeholder(left, kinds[0], "a")
    b = te.placeholder(packed.shape, kinds[1], "b")
    function, rule, why = schedule_kernel(te.create_prim_func([a, b, build(a, b)]), machine)
    if why:
        raise ValueError(f"{rule}: {why}")
    return function, [(tuple(left), kinds[0]), (packed.shape, kinds[1]), (tuple(result), kinds[2])]


def measure(calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds of thread CPU time, the calls taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for index, call in enumerate(calls):
            start = time.thread_time_ns()
            call()
            times[index].append((time.thread_time_ns() - start) / 1e6)
    return [float(np.median(t)) for t in times]


def tune_one(work: Workload, machine: Machine) -> dict[str, Any] | None:
    """The row of a workload whose best tile beats the rule's own, else None."""
    import tvm

    rows, columns, depth = sizes(work)
    limit = machine.tile if work.kind.endswith("conv") and tuple(work.shapes[1][2:]) != (1, 1) else machine.large
    tiles = candidates(rows, columns, machine, depth, limit, 1 if work.kind.startswith("q") else 4)[:TRIED]
    functions: dict[str, Any] = {}
    shapes: list[Any] = []
    kept: list[Tile] = []
    for tile in tiles:
        try:
            function, arguments = kernel(work, tile, machine)
        except ValueError:
            continue
        name = f"tile{len(kept)}"
        functions[name] = function.with_attr("global_symbol", name)
        shapes.append(arguments)
        kept.append(tile)
    if len(kept) < 2 or kept[0] != tiles[0]:
        return None
    library = tvm.compile(tvm.IRModule(functions), target=machine.tvm_target())
    rng = np.random.default_rng(0)

    def call(index: int) -> Callable[[], Any]:
        made = [
            tvm.runtime.tensor(rng.standard_normal(s).astype(k) if k == "float32" else rng.integers(0, 9, s).astype(k))
            for s, k in shapes[index]
        ]
        function = library[f"tile{index}"]
        return lambda: function(*made)

    calls = [call(i) for i in range(len(kept))]
    times = measure(calls)
    best = int(np.argmin(times))
    if times[best] > (1 - MARGIN) * times[0]:
        return None
    again = measure([calls[0], calls[best]], 2 * ROUNDS)
    if again[1] > (1 - MARGIN) * again[0]:
        return None
    return {"tile": asdict(kept[best]), "rule_ms": again[0], "tuned_ms": again[1], "tried": len(kept)}


def sizes(work: Workload) -> tuple[int, int, int]:
    """Rows, columns and products per sum."""
    if work.kind.endswith("conv"):
        _, weight, out, *_ = work.shapes
        return int(out[2]), int(out[3]), int(np.prod(weight[1:]))
    left, (columns,) = work.shapes
    return int(left[-2]), int(columns), int(left[-1])


def main(source: str, database: str, seconds: str) -> int:
    """Tune until the time is up; the database is written after every workload that gained."""
    os.environ["TVM_NUM_THREADS"] = "1"
    end = time.monotonic() + float(seconds)
    machine, path = host(), Path(database)
    known = read(path, machine)
    tried = won = 0
    for work in workloads(onnx.load(source), machine):
        if time.monotonic() > end:
            break
        if work.key in known:
            continue
        tried += 1
        row = tune_one(work, machine)
        won += row is not None
        write(path, machine, {work.key: row or {"tile": None}})
    sys.stdout.write(json.dumps({"tried": tried, "won": won}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
