"""PYNQ side: the overlay with its DMA. Needs pynq (on the board's image). Copied into the board package."""

from __future__ import annotations

from pathlib import Path


class LinkError(ConnectionError):
    """The overlay cannot be loaded or the DMA does not finish."""


class PynqLink:
    """Transfers through the AXI DMA `dma` of accelerator.bit. meta: package.json."""

    def __init__(self, folder: Path, meta: dict) -> None:
        bit = folder / "accelerator.bit"
        if not bit.is_file() or not bit.with_suffix(".hwh").is_file():
            raise LinkError(
                "accelerator.bit and accelerator.hwh are not in this package; build them with Vivado (vivado/build.tcl) and copy both here"
            )
        try:
            from pynq import Overlay, allocate
        except ImportError:
            raise LinkError("the package pynq is missing; run this on the board's PYNQ image") from None
        self.allocate = allocate
        self.overlay = Overlay(str(bit))
        self.dma = self.overlay.dma
        self.meta = meta

    def transfer(self, data: bytes, expected: int) -> bytes:
        """Send `data` (whole frames), return `expected` bytes."""
        import numpy as np

        source = self.allocate(shape=(len(data),), dtype=np.uint8)
        sink = self.allocate(shape=(expected,), dtype=np.uint8)
        try:
            source[:] = np.frombuffer(data, np.uint8)
            source.flush()
            self.dma.recvchannel.transfer(sink)
            self.dma.sendchannel.transfer(source)
            self.dma.sendchannel.wait()
            self.dma.recvchannel.wait()
            sink.invalidate()
            return bytes(np.asarray(sink))
        finally:
            source.freebuffer()
            sink.freebuffer()
