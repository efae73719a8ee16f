"""Radiona ULX3S with the ECP5-85: the board whose whole flow to the bitstream is open."""

from boards.board import Board

BOARD = Board(
    name="ulx3s-85f",
    kind="fpga",
    part="LFE5U-85F-6BG381C",
    family="ecp5",
    lut=83_640,
    ff=83_640,
    bram18=208,
    dsp=156,
    dsp_kind="MULT18X18D (two 9x9)",
    clocks_mhz=(25.0, 50.0, 100.0),
    memory_gbs=0.33,
    memory="32 MB SDR SDRAM, 16 bit at 166 MHz",
    port_bits=16,
    package="CABGA381",
    size="85k",
    loader="ulx3s",
    speed="6",
    oscillator_mhz=25.0,
    pins=(
        ("clk_25mhz", "G2", "PULLMODE=NONE IO_TYPE=LVCMOS33"),
        ("ftdi_rxd", "L4", "PULLMODE=UP IO_TYPE=LVCMOS33 DRIVE=4"),
        ("ftdi_txd", "M1", "PULLMODE=UP IO_TYPE=LVCMOS33"),
        ("wifi_gpio0", "L2", "PULLMODE=UP IO_TYPE=LVCMOS33 DRIVE=4"),
        *(
            (f"led[{i}]", site, "PULLMODE=NONE IO_TYPE=LVCMOS33 DRIVE=4")
            for i, site in enumerate(("B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"))
        ),
    ),
    processor="none (ESP32 beside it)",
    programmer="openFPGALoader or ecpdap, .bit over USB JTAG",
    flow="Yosys + nextpnr-ecp5 (open), to the bitstream",
    sources=(
        ("part", "ULX3S schematic v3.0.8: LFE5U-85F-6BG381C"),
        (
            "lut, ff, bram18, dsp",
            "Lattice FPGA-DS-02012, table 1.1: LFE5U-85 has 84 k LUTs (nextpnr counts 83,640 TRELLIS_COMB), 208 EBR of 18 Kb, 156 18x18 multipliers",
        ),
        ("clocks_mhz", "25 MHz oscillator on the board; others by its PLL"),
        ("pins", "amaranth-boards 0.0.21 and litex-boards 2023.12, ulx3s, which agree on these"),
        ("loader", "openFPGALoader --list-boards: ulx3s"),
        ("package, size, speed", "nextpnr-ecp5's names for LFE5U-85F-6BG381C"),
        ("memory, memory_gbs", "ULX3S manual: 32 MB SDRAM, 16 bit, 166 MHz grade: 2 bytes x 166 MHz"),
    ),
)
