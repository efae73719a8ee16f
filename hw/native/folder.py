"""A standalone folder, read: its plan, and how it is run here or through an emulator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import ToolError, UserError
from deploy.tools import Tool, run
from export import parity
from hw.native.compile import PLAN
from hw.native.plan import KINDS, Plan, Tensor
from hw.native.processors import Processor

PROGRAM, RECORD = "run", "native.json"


def read_plan(text: str) -> Plan:
    """The tensors of inputs and outputs of a plan file."""
    plan = Plan()
    kinds = {(code, bits): name for name, (code, bits) in KINDS.items()}
    for line in text.splitlines():
        parts = line.split()
        if parts and parts[0] == "t":
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
        try:
            found: dict[str, Any] = json.loads(file.read_text())
        except ValueError:
            raise UserError(f"{file} is damaged (not JSON); run deploy native again") from None
        return found

    @property
    def plan(self) -> Plan:
        """Raises UserError for a plan that cannot be read."""
        try:
            return read_plan((self.path / PLAN).read_text())
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.path / PLAN} is damaged ({type(error).__name__}); run deploy native again"
            ) from error

    def execute(
        self, processor: Processor, values: list[np.ndarray], work: Path, threads: int = 1, samples: int = 0
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Outputs and the runner's own record; under the processor's emulator where it has one, whose times mean nothing."""
        plan, here = self.plan, self.path.absolute()
        if not (here / PROGRAM).is_file():
            raise UserError(f"{self.path} has no program; run deploy native again")
        source, result, log = work / "inputs.bin", work / "outputs.bin", work / "run.log"
        source.write_bytes(plan.pack(values))
        arguments = [str(here), str(threads), str(samples), str(source), str(result)]
        program = str(here / PROGRAM)
        if processor.emulator is None:
            run(Tool(program), arguments, cwd=work, log=log, outputs=(result,), timeout=600)
        else:
            tool, flags = processor.emulator
            run(tool, [*flags, program, *arguments], cwd=work, log=log, outputs=(result,), timeout=600)
        return plan.unpack(result.read_bytes()), _last(log)


def agreement(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> tuple[float, bool, int]:
    """Of all outputs of all samples: the largest max|err| / max|ref| (infinite where one is no number), whether all bits are equal, and how many values
    differ."""
    pairs = [(a, b) for one, two in zip(got, want, strict=True) for a, b in zip(one, two, strict=True)]
    equal = all(np.array_equal(a, b) for a, b in pairs)
    worst = 0.0 if equal else max(parity.relative([a.astype(np.float64)], [b.astype(np.float64)]) for a, b in pairs)
    return worst, equal, sum(int((a != b).sum()) for a, b in pairs)


def _last(log: Path) -> dict[str, Any]:
    lines = [x for x in log.read_text().splitlines() if x.startswith("{")]
    if not lines:
        raise ToolError("the runner ended without its record")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
