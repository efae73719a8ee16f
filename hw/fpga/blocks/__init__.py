"""Hardware blocks, one file each: how an operator of the integer graph becomes RTL. A new block is a new file here with a
`BLOCK` object, and its module in rtl/."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from hw.fpga.blocks.base import Block


@cache
def blocks() -> dict[str, Block]:
    """Every block by the operator that it builds."""
    found: dict[str, Block] = {}
    for info in pkgutil.iter_modules(__path__):
        block = getattr(importlib.import_module(f"hw.fpga.blocks.{info.name}"), "BLOCK", None)
        if block is not None:
            found |= dict.fromkeys(block.kinds, block)
    return found
