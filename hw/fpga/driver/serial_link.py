"""Host side of the serial link (rtl/link.sv): packets with CRC-16, repeated until answered. Needs pyserial and NumPy.

Copied into the board package; imports nothing of this project.
"""

from __future__ import annotations

import time
from typing import Any

WRITE, READ, ABOUT = 1, 2, 3
TAKEN, BUSY, DAMAGED, DATA, INFO = 0x81, 0x82, 0x83, 0x84, 0x85
MOST = 240  # payload bytes of a packet


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


class LinkError(ConnectionError):
    """The board does not answer, or answers nonsense."""


class SerialLink:
    """A link on an open serial port (anything with read, write and timeout like serial.Serial).

    tries: how often a packet is repeated. Raises LinkError when the board stays silent.
    """

    def __init__(self, port: Any, tries: int = 10, patience: float = 0.5) -> None:
        self.port, self.tries, self.patience = port, tries, patience
        self.write_seq = self.read_seq = 0
        self.repeated = 0

    @classmethod
    def open(cls, device: str, baud: int = 1_000_000, patience: float = 0.5) -> SerialLink:
        try:
            import serial
        except ImportError:
            raise LinkError("the package pyserial is missing; pip install pyserial") from None
        try:
            return cls(serial.Serial(device, baud, timeout=0.05), patience=patience)
        except serial.SerialException as error:
            raise LinkError(
                f"cannot open {device}: {error}; is the board plugged in, and may you use the port?"
            ) from None

    def _packet(self, kind: int, seq: int, length: int, payload: bytes = b"") -> bytes:
        body = bytes([kind, seq, length]) + payload
        return b"\xa5" + body + crc16(body).to_bytes(2, "big")

    def _answer(self, seq: int) -> tuple[int, bytes] | None:
        """One answer to `seq`, or None when none came in time or it was damaged."""
        end = time.monotonic() + self.patience
        data = b""
        while time.monotonic() < end:
            data += self.port.read(1 if len(data) < 6 else max(1, 6 + data[3] - len(data)))
            while data and data[0] != 0x5A:
                data = data[1:]
            if len(data) >= 4 and len(data) >= 6 + data[3]:
                size = 6 + data[3]
                body, crc = data[1 : size - 2], int.from_bytes(data[size - 2 : size], "big")
                if crc16(body) == crc and body[1] == seq:
                    return body[0], body[3:]
                data = data[1:]
        return None

    def _ask(self, kind: int, seq: int, length: int, payload: bytes = b"") -> tuple[int, bytes]:
        for attempt in range(self.tries):
            self.repeated += attempt > 0
            try:
                self.port.write(self._packet(kind, seq, length, payload))
                found = self._answer(seq)
            except OSError as error:
                raise LinkError(f"the serial port failed: {error}; was the board unplugged?") from None
            if found is not None and found[0] != DAMAGED:
                return found
        raise LinkError("the board does not answer; is its design loaded, and is this its port?")

    def info(self) -> tuple[str, int, int]:
        """(hash of the design as hex, bytes of an input word, bytes of an output word)."""
        code, body = self._ask(ABOUT, 0, 0)
        if code != INFO or len(body) != 10:
            raise LinkError("the board answers in another protocol; load the bitstream of this package")
        return body[7::-1].hex(), body[8], body[9]

    def write(self, data: bytes) -> bool:
        """Offer at most MOST bytes; False while the board is still busy with the ones before."""
        seq = (self.write_seq + 1) & 0xFF
        code, _ = self._ask(WRITE, seq, len(data), data)
        if code == TAKEN:
            self.write_seq = seq
        return code == TAKEN

    def read(self, most: int = MOST) -> bytes:
        """Results that have arrived, at most `most` bytes, perhaps none."""
        self.read_seq = (self.read_seq + 1) & 0xFF
        code, body = self._ask(READ, self.read_seq, most)
        if code != DATA:
            raise LinkError("the board answers in another protocol; load the bitstream of this package")
        return body

    def transfer(self, data: bytes, expected: int, patience: float = 30.0) -> bytes:
        """Send `data`, collect `expected` bytes of results; both sides take turns, so neither can block the other."""
        got = bytearray()
        at, last = 0, time.monotonic()
        while len(got) < expected:
            moved = 0
            if at < len(data) and self.write(data[at : at + MOST]):
                at += MOST
                moved = 1
            part = self.read(min(MOST, expected - len(got)))
            got += part
            if moved or part:
                last = time.monotonic()
            elif time.monotonic() - last > patience:
                raise LinkError(f"the design stopped after {len(got)} of {expected} result bytes")
        return bytes(got)
