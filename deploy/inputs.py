"""What a model takes: names, shapes and types of its inputs, and example values for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.errors import UserError

MAX_ELEMENTS = 1 << 28
_DTYPES = {"float32": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:[x,]\d+)*)(?::(?P<dtype>\w+))?(?::(?P<high>\d+))?")


@dataclass(frozen=True)
class InputSpec:
    """One model input. `shape` includes the batch axis; integer inputs are drawn from [low, high)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int = 2
    low: int = 0

    def example(self, rng: np.random.Generator, batch: int | None = None) -> np.ndarray:
        """Random values of this input: standard normal for floats, uniform in [low, high) for integers."""
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        if self.dtype == "float32":
            return rng.standard_normal(shape, dtype=np.float32)
        return rng.integers(self.low, self.high, shape).astype(_DTYPES[self.dtype])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> InputSpec:
        return cls(
            str(row["name"]),
            tuple(int(n) for n in row["shape"]),
            str(row["dtype"]),
            int(row["high"]),
            int(row.get("low", 0)),
        )


def parse_inputs(text: str) -> tuple[InputSpec, ...]:
    """Parse `1x3x224x224` or `input_ids=1x128:int64:30522;mask=1x128:int64:2`.

    Raises UserError when the text is not of that form or names more elements than MAX_ELEMENTS.
    """
    specs = []
    for index, part in enumerate(text.split(";")):
        match = _SPEC.fullmatch(part.strip())
        if match is None:
            raise UserError(f"--input-shape {text!r} is not of the form 1x3x224x224 or name=1x128:int64:30522;...")
        shape = tuple(int(n) for n in re.split("[x,]", match["shape"]))
        dtype = match["dtype"] or "float32"
        if dtype not in _DTYPES:
            raise UserError(f"--input-shape names the type {dtype!r}; known are {', '.join(_DTYPES)}")
        if min(shape) < 1 or int(np.prod(shape, dtype=object)) > MAX_ELEMENTS:
            raise UserError(f"--input-shape {text!r} has no elements or more than {MAX_ELEMENTS}; give the real shape")
        name = match["name"] or ("input" if index == 0 else f"input_{index}")
        specs.append(InputSpec(name, shape, dtype, int(match["high"] or 2)))
    return tuple(specs)


def examples(specs: Sequence[InputSpec], seed: int, batch: int | None = None) -> list[np.ndarray]:
    """One example array for each input, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [spec.example(rng, batch) for spec in specs]
