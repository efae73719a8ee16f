"""A standalone folder, read: its plan, and how it is run here or through an emulator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import ToolError, UserError
from deploy.tools import Tool, run
from hw.native.compile import PLAN
from hw.native.plan import Plan, Tensor
from hw.native.processors import Processor

PROGRAM, RECORD = "run", "native.json"


def read_plan(text: str) -> Plan:
    """The tensors of inputs and outputs of a plan file."""
    plan = Plan()
    kinds = {
        (0, 8): "int8",
        (0, 16): "int16",
        (0, 32): "int32",
        (0, 64): "int64",
        (1, 8): "uint8",
        (2, 32): "float32",
        (2, 64): "float64",
    }
    for line in text.splitlines():
        parts = line.split()
        if parts[0] == "t":
            code, bits, place, offset, *shape = parts[1:]
            tensor = Tensor(tuple(map(int, shape)), kinds[int(code), int(bits)], place, int(offset))
            plan.tensors.append(tensor)
            if place in "io":
                (plan.inputs if place == "i" else plan.outputs).append(len(plan.tensors) - 1)
    plan.outputs.sort(key=lambda i: plan.tensors[i].offset)
    return plan


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def record(self) -> dict[str, Any]:
        file = self.path / RECORD
        if not file.is_file():
            raise UserError(
                f"{self.path} is no folder of deploy native; make one with: deploy native EXPORT --board BOARD"
            )
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    @property
    def plan(self) -> Plan:
        return read_plan((self.path / PLAN).read_text())

    def execute(
        self, processor: Processor, values: list[np.ndarray], work: Path, threads: int = 1, samples: int = 0
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Outputs and the runner's own record; under the processor's emulator where it has one, whose times mean nothing."""
        plan = self.plan
        source, result, log = work / "inputs.bin", work / "outputs.bin", work / "run.log"
        source.write_bytes(plan.pack(values))
        arguments = [str(self.path), str(threads), str(samples), str(source), str(result)]
        program = str(self.path / PROGRAM)
        if processor.emulator is None:
            run(Tool(program), arguments, cwd=work, log=log, outputs=(result,), timeout=600)
        else:
            tool, flags = processor.emulator
            run(tool, [*flags, program, *arguments], cwd=work, log=log, outputs=(result,), timeout=600)
        return plan.unpack(result.read_bytes()), _last(log)


def _last(log: Path) -> dict[str, Any]:
    lines = [x for x in log.read_text().splitlines() if x.startswith("{")]
    if not lines:
        raise ToolError("the runner ended without its record")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
