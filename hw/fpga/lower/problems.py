"""What the hardware cannot take: found in one pass over the whole graph, told all at once."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One operator that cannot be built: where it came from, why, and what to do about it."""

    module: str
    op: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.module or '(no name)'} ({self.op}): {self.reason}; {self.remedy}"


class CannotLower(Exception):
    """Raised by a rule for one operator; the pass over the graph collects it as a Problem."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def refuse(problems: list[Problem], what: str) -> None:
    """Raise one UserError that lists every problem."""
    if problems:
        rows = "".join(f"\n  {p}" for p in problems)
        raise UserError(f"{what} cannot be built, {len(problems)} operator(s) are in the way:{rows}")
