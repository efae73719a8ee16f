"""What a backend needs to know of a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """One target. Counts are of the whole part; `sources` names where each number is from, by field.

    lut: 6-input LUTs (LUT4 on ECP5). bram_kbit: block RAM in kilobits; bram18: in 18-kilobit blocks. dsp: multiplier blocks.
    clocks_mhz: default fabric clock first. memory_gbs: peak external bandwidth in GB/s. port_bits: native width of a memory port.
    """

    name: str
    kind: str  # "fpga" or "host"
    part: str
    sources: tuple[tuple[str, str], ...]
    family: str = ""
    lut: int = 0
    ff: int = 0
    bram18: int = 0
    uram: int = 0
    dsp: int = 0
    dsp_kind: str = ""
    clocks_mhz: tuple[float, ...] = ()
    memory_gbs: float = 0.0
    memory: str = ""
    port_bits: int = 0
    processor: str = ""
    programmer: str = ""
    flow: str = ""
    note: str = ""
    finn: str = ""  # FINN's name of the board
    ps: str = ""  # Vivado's block of the processor system
    package: str = ""  # nextpnr's names of the part
    size: str = ""
    speed: str = ""
    oscillator_mhz: float = 0.0
    loader: str = ""  # openFPGALoader's name of the board
    pins: tuple[tuple[str, str, str], ...] = ()  # port, site, IO attributes

    @property
    def bram_kbit(self) -> int:
        return 18 * self.bram18
