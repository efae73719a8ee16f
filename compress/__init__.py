"""nn.Module in, smaller nn.Module out. `compress.compress(module, CompressConfig(bits=4), ...)`; importing this is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress.config import CompressConfig

if TYPE_CHECKING:
    from compress.api import Compressed, compress
    from compress.recipe import load

__all__ = ["CompressConfig", "Compressed", "compress", "load"]


def __getattr__(name: str) -> Any:
    if name in ("compress", "Compressed"):
        from compress import api

        return getattr(api, name)
    if name == "load":
        from compress.recipe import load

        return load
    raise AttributeError(f"module 'compress' has no attribute {name!r}")
