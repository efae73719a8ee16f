"""Targets: one frozen `Board` in one file each, every number with its source. A new board is a new file here, or an entry
point of the group `deploy.boards` in another package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points

from boards.board import Board
from deploy.errors import UserError


def boards() -> dict[str, Board]:
    """Every board by name, sorted."""
    found: dict[str, Board] = {}
    for info in pkgutil.iter_modules(__path__):
        board = getattr(importlib.import_module(f"boards.{info.name}"), "BOARD", None)
        if isinstance(board, Board):
            found[board.name] = board
    for entry in entry_points(group="deploy.boards"):
        board = entry.load()
        if isinstance(board, Board):
            found[board.name] = board
    return dict(sorted(found.items()))


def get(name: str) -> Board:
    """The board of that name. Raises UserError with the nearest match."""
    known = boards()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"unknown board {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}")
        )
    return known[name]
