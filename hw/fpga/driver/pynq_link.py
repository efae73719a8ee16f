"""PYNQ side: the overlay with its DMA. Needs pynq (on the board's image). Copied into the board package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 25  # of one transfer; the DMA counts up to 2^26
PATIENCE = 60.0  # seconds


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
        if "memory" in meta:
            self._load(folder / meta["memory"])

    def _load(self, path: Path) -> None:
        """Put the constants into memory and tell the design where; bit 0 of the register lets it begin."""
        import numpy as np

        content = np.fromfile(path, np.uint8)
        self.constants = self.allocate(shape=content.shape, dtype=np.uint8)  # stays as long as the overlay
        self.constants[:] = content
        self.constants.flush()
        if self.constants.physical_address % 4096 or self.constants.physical_address >> 32:
            self.constants.freebuffer()
            raise LinkError("the constants must stand at a multiple of 4,096 below 4 GB; free memory and load again")
        self.overlay.image.write(0, self.constants.physical_address | 1)

    def transfer(self, data: bytes, expected: int) -> bytes:
        """Send `data` (whole frames), return `expected` bytes; in batches that the DMA's length register holds."""
        frame = self.meta["input"]["beats"] * self.meta["input"]["word_bytes"]
        result = self.meta["output"]["beats"] * self.meta["output"]["word_bytes"]
        frames = max(1, MOST_BYTES // max(frame, result))
        parts = []
        for at in range(0, len(data) // frame, frames):
            part = data[at * frame : (at + frames) * frame]
            parts.append(self._batch(part, len(part) // frame * result))
        return b"".join(parts)

    def _batch(self, data: bytes, expected: int) -> bytes:
        import numpy as np

        source = self.allocate(shape=(len(data),), dtype=np.uint8)
        sink = self.allocate(shape=(expected,), dtype=np.uint8)
        try:
            source[:] = np.frombuffer(data, np.uint8)
            source.flush()
            self.dma.recvchannel.transfer(sink)
            self.dma.sendchannel.transfer(source)
            for channel in (self.dma.sendchannel, self.dma.recvchannel):
                self._finish(channel)
            sink.invalidate()
            return bytes(np.asarray(sink))
        finally:
            source.freebuffer()
            sink.freebuffer()

    def _finish(self, channel: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not channel.idle:
            if time.monotonic() > end:
                raise LinkError(f"the DMA did not finish within {PATIENCE:g} s; load the overlay again")
