"""The pruning part of a recipe, read from a file that anybody may have written: every value is checked before it is used."""

from __future__ import annotations

import itertools
from typing import Any

from deploy.errors import UserError

Rows = list[int]
MOST_BLOCKS = 10_000


def _refuse(what: str) -> UserError:
    return UserError(f"the recipe's pruning is damaged ({what}); run deploy compress again")


def indices(value: Any, what: str, most: int, least: int = 0) -> Rows:
    """Strictly increasing whole numbers from 0 below `most`, at least `least` of them. Raises UserError for anything else."""
    if not isinstance(value, list) or any(type(v) is not int for v in value):
        raise _refuse(f"{what} are no whole numbers")
    if any(b <= a for a, b in itertools.pairwise(value)) or (value and (value[0] < 0 or value[-1] >= most)):
        raise _refuse(f"{what} are out of order or out of range")
    if len(value) < least:
        raise _refuse(f"{what} are fewer than {least}")
    return value


def counts(value: Any, what: str, number: int) -> Rows:
    """`number` whole numbers that are not negative. Raises UserError for anything else."""
    if not isinstance(value, list) or len(value) != number or any(type(v) is not int or v < 0 for v in value):
        raise _refuse(f"{what} are not {number} whole numbers")
    return value


def units(recipe: Any) -> dict[str, Any]:
    """The recipe of a transformer: 'keep' by group, 'tokens' and 'vocabulary' where they were pruned. Raises UserError for another form."""
    if not isinstance(recipe, dict) or recipe.get("form") not in ("units", "channels"):
        raise _refuse("its form is unknown")
    if recipe["form"] == "units":
        keep = recipe.get("keep")
        if not isinstance(keep, dict) or not set(recipe) <= {"form", "keep", "tokens", "vocabulary"}:
            raise _refuse("it does not say what stays")
    return recipe


def history(value: Any) -> list[tuple[str, bool, Rows]]:
    """Torch-Pruning's steps: (layer, whether its outputs, channels). Raises UserError for anything else."""
    if not isinstance(value, list) or len(value) > MOST_BLOCKS:
        raise _refuse("its steps are no list")
    found = []
    for row in value:
        if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or type(row[1]) is not bool:
            raise _refuse("a step is not of the form layer, side, channels")
        found.append((row[0], row[1], indices(sorted(row[2]) if isinstance(row[2], list) else row[2], row[0], 1 << 20)))
    return found
