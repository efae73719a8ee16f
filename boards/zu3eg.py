"""The Zynq UltraScale+ ZU3EG, shared by the Ultra96 boards: numbers of the part, not of a board.

FINN's own platform table has 412 BRAM18 and 71,000 LUTs, which the part does not have.
"""

from typing import Any

PART: dict[str, Any] = {
    "family": "ultrascale+",
    "lut": 70_560,
    "ff": 141_120,
    "bram18": 432,
    "uram": 0,
    "dsp": 360,
    "dsp_kind": "DSP48E2 (27x18)",
    "clocks_mhz": (150.0, 250.0, 300.0),
    "port_bits": 128,
    "processor": "4x Cortex-A53, 1.5 GHz, NEON",
    "ps": "zynq_ultra_ps_e",
    "programmer": "PYNQ Overlay (.bit + .hwh)",
    "flow": "Vivado (vendor); simulation and utilization with open tools",
    "memory_gbs": 8.5,
    "memory": "2 GB LPDDR4, 32 bit at 2133 MT/s",
}
SOURCES: tuple[tuple[str, str], ...] = (
    ("ps", "name of Vivado's IP block for this family's processor system"),
    (
        "lut, ff, bram18, dsp",
        "AMD DS891, Zynq UltraScale+ overview, ZU3EG: 70,560 LUTs, 141,120 flip-flops, 216 36-Kb blocks, 360 DSP slices",
    ),
    ("port_bits", "FINN util/basic.py, pynq_native_port_width: 128"),
    ("memory, memory_gbs", "Avnet Ultra96 hardware guide: 2 GB LPDDR4, 32 bit; 2133 MT/s x 4 bytes"),
    (
        "clocks_mhz",
        "150 MHz is conservative for FINN designs; the DSP48E2 itself reaches 645 MHz in speed grade -1 (DS925)",
    ),
    ("processor", "AMD DS925: Cortex-A53 at up to 1.5 GHz"),
)
