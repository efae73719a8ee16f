"""What a schedule must know of a processor: vector lanes, registers for a tile, the integer dot product, and TVM's target for it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Machine:
    """lanes: float32 values of a vector register. tile, large: vector registers that a tile's sums may take, where windows
    slide and where they do not. dot: the instruction of u8 x s8 sums of four
    (`vnni512`, `vnni256`, '' for none). target: TVM's target as a dict. tiles: tuned
    tiles by workload (tune.py). asked: told of every workload as it is met, and whether a
    tuned tile is used for it. amx: Intel's tile registers, for integers. fma: multiplies and
    adds with one rounding."""

    name: str
    lanes: int
    tile: int
    large: int
    dot: str = ""
    target: dict[str, Any] = field(default_factory=dict)
    tiles: Mapping[str, Any] = field(default_factory=dict, compare=False)
    asked: Callable[[str, tuple[Any, ...], bool], None] | None = field(default=None, compare=False)
    amx: bool = False
    fma: bool = True

    def tvm_target(self) -> Any:
        import tvm

        return tvm.target.Target(dict(self.target))


AMX = Machine(
    "avx512-amx", 16, 16, 21, "vnni512",
    {"kind": "llvm", "mcpu": "cascadelake", "mattr": ["-prefer-256-bit", "+amx-tile", "+amx-int8"]}, amx=True,
)  # fmt: skip
X86 = (
    Machine(
        "avx512-vnni", 16, 16, 21, "vnni512", {"kind": "llvm", "mcpu": "cascadelake", "mattr": ["-prefer-256-bit"]}
    ),
    Machine("avx512", 16, 16, 21, "", {"kind": "llvm", "mcpu": "skylake-avx512", "mattr": ["-prefer-256-bit"]}),
    Machine("avx2", 8, 12, 12, "", {"kind": "llvm", "mcpu": "haswell"}),
)
NEON = Machine("neon", 4, 16, 16, "", {"kind": "llvm", "mcpu": "generic", "mattr": ["+neon"]})
PLAIN = Machine("plain", 4, 8, 8, "", {"kind": "llvm"}, fma=False)


def flags() -> frozenset[str]:
    """CPU features as the kernel names them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123 - a /proc file
            for line in stream:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


@functools.cache
def tiles_granted() -> bool:
    """Ask Linux for the tile registers of this process (arch_prctl, ARCH_REQ_XCOMP_PERM); libraries ask for themselves (permit.cpp)."""
    call, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(call, request, tile_data) == 0


def host() -> Machine:
    """The machine that this process runs on."""
    found = flags()
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= found:
        if {"avx512_vnni", "amx_tile", "amx_int8"} <= found and tiles_granted():
            return AMX
        return X86[0] if "avx512_vnni" in found else X86[1]
    if {"avx2", "fma"} <= found:
        return X86[2]
    return NEON if "asimd" in found or "neon" in found else PLAIN
