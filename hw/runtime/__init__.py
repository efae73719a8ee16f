"""Runtimes behind one Protocol, one file each. A new runtime is a new file here with a `RUNTIME` object (or several `RUNTIMES`)."""

from __future__ import annotations

import importlib
import pkgutil

from hw.runtime.base import Runtime


def runtimes() -> dict[str, Runtime]:
    """Every runtime file of this folder by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"hw.runtime.{info.name}")
        for runtime in (*getattr(module, "RUNTIMES", ()), *filter(None, [getattr(module, "RUNTIME", None)])):
            found[runtime.name] = runtime
    return found
