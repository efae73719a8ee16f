"""The Zynq-7020, shared by the PYNQ boards: numbers of the part, not of a board."""

from typing import Any

PART: dict[str, Any] = {
    "part": "xc7z020clg400-1",
    "family": "7-series",
    "lut": 53_200,
    "ff": 106_400,
    "bram18": 280,
    "uram": 0,
    "dsp": 220,
    "dsp_kind": "DSP48E1 (25x18)",
    "clocks_mhz": (100.0, 142.857, 200.0),
    "port_bits": 64,
    "processor": "2x Cortex-A9, 650 MHz, NEON",
    "ps": "processing_system7",
    "programmer": "PYNQ Overlay (.bit + .hwh)",
    "flow": "Vivado (vendor); simulation and utilization with open tools",
}
SOURCES: tuple[tuple[str, str], ...] = (
    ("ps", "name of Vivado's IP block for this family's processor system"),
    ("part", "FINN util/basic.py, pynq_part_map: xc7z020clg400-1"),
    (
        "lut, ff, bram18, dsp",
        "AMD DS190, Zynq-7000 overview, table 1: Z-7020 has 53,200 LUTs, 106,400 flip-flops, 140 36-Kb blocks, 220 DSP slices",
    ),
    ("clocks_mhz", "PS fabric clocks are 1000 MHz divided by integers; 100 MHz is FINN's default for these boards"),
    ("port_bits", "FINN util/basic.py, pynq_native_port_width: 64"),
    ("processor", "AMD DS187: Cortex-A9 at up to 667 MHz in speed grade -1; the boards run it at 650 MHz"),
)
