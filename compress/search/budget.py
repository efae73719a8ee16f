"""What a search must keep to: `size=0.3MB`, `accuracy=-0.5`, or a cost that an installed package announces (`luts=20000`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from deploy.errors import UserError

GROUP = "deploy.costs"
UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "KIB": 1024, "MIB": 1024**2}


@dataclass(frozen=True)
class Budget:
    """kind: size (bytes), accuracy (points that may be lost: least size then), or the name of another cost."""

    kind: str
    limit: float


def parse(text: str) -> Budget:
    """Raises UserError for anything that is no budget."""
    kind, _, value = text.partition("=")
    number = value.rstrip("BKMIbkmi")
    unit = value[len(number) :].upper()
    try:
        limit = float(number)
    except ValueError:
        limit = float("nan")
    known = kind in ("size", "accuracy") or kind in costs()
    if not known or limit != limit or (kind != "size" and unit) or unit not in UNITS:
        names = ", ".join(["size=0.3MB", "accuracy=-0.5", *(f"{n}=N" for n in costs())])
        raise UserError(f"--budget {text!r} is no budget; the forms are {names}")
    if kind == "accuracy":
        if limit > 0:
            raise UserError(
                f"--budget {text}: the points that may be lost are written with a minus, accuracy=-{limit:g}"
            )
        return Budget(kind, -limit)
    if limit <= 0:
        raise UserError(f"--budget {text} must be more than 0")
    return Budget(kind, limit * UNITS[unit])


def costs() -> dict[str, Any]:
    """Entry points of further costs by name."""
    return {e.name: e for e in entry_points(group=GROUP)}


def cost(kind: str, *args: Any) -> Callable[[dict[str, int]], float]:
    """The cost function of a kind, made for one model: bits by layer -> cost."""
    made: Callable[[dict[str, int]], float] = costs()[kind].load()(*args)
    return made
