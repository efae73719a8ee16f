"""Tensor intrinsics of Intel's tile registers (AMX): 2 x 2 tiles of sums stay in registers while bytes are multiplied, and are stored once.

Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights. The array of sums that TVM sees is never written before the store; its memory holds the
configuration of the tiles. The store gives the tiles back: ONNX Runtime takes a configuration of which it finds a part for its own, and dies of the rest. Source:
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. The intrinsics are made as text: a tile's number must be a literal.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

GROUPS, PANELS = 2, 2  # tiles of activations and of weights; their products are the tiles of sums
LANES = 16  # 32-bit sums in a row of a tile
BYTES = 64  # bytes in a row of a tile

_HEAD = "@T.prim_func(s_tir=True)\ndef f({parameters}):\n"
_SUMS = "    {0} = T.match_buffer({1}, {shape}, 'int32', offset_factor=1)\n"
_ROOT = "    with T.sblock('root'):\n        T.reads({reads})\n        T.writes({writes})\n"
_LOOPS = """        for {loops} in T.grid({extents}):
            with T.sblock('body'):
                {axes} = T.axis.remap('{kinds}', [{loops}])
                {body}
"""


@dataclass(frozen=True)
class Block:
    """rows: of a tile of activations (2 to 16); depth: bytes multiplied at once (a multiple of 4, at most 64).

    tall: the two tiles are rows of an image, else they follow each other along it. strides: steps between rows of an image and between pixels.
    narrow: an image's pixels are 32-bit numbers of four bytes, and `depth` bytes are those of neighbouring pixels.
    """

    rows: int
    depth: int
    tall: bool
    strides: tuple[int, int]
    narrow: bool = False

    @property
    def name(self) -> str:
        return "deploy_amx_" + "_".join(
            str(int(v)) for v in (self.rows, self.depth, self.tall, *self.strides, self.narrow)
        )

    @property
    def sums(self) -> tuple[int, int, int, int]:
        return (GROUPS, self.rows, PANELS, LANES)


def _configuration(block: Block) -> list[int]:
    """The 64 bytes of ldtilecfg as 16 numbers: palette, bytes per row of each tile, rows of each tile."""
    data = bytearray(64)
    data[0] = 1
    for tile in range(8):
        width = block.depth if tile in (4, 5) else BYTES
        data[16 + 2 * tile : 18 + 2 * tile] = width.to_bytes(2, "little")
        data[48 + tile] = block.depth // 4 if tile >= 6 else block.rows
    return [int.from_bytes(data[4 * i : 4 * i + 4], "little", signed=True) for i in range(16)]


def _call(name: str, *arguments: str) -> str:
    from tvm.target.codegen import llvm_lookup_intrinsic_id

    number = int(llvm_lookup_intrinsic_id(f"llvm.x86.{name}"))
    return f"        T.evaluate(T.call_llvm_intrin({', '.join((f'T.uint32({number})', *arguments))}, dtype='void'))\n"


def _loops(extents: list[int], axes: str, kinds: str, body: str) -> str:
    loops = ", ".join(f"i{n}" for n in range(len(extents)))
    return _LOOPS.format(loops=loops, extents=", ".join(map(str, extents)), axes=axes, kinds=kinds, body=body)


def _start(block: Block, whole: str) -> tuple[str, str]:
    """C = 0, and the tiles configured (which clears them)."""
    head = _HEAD.format(parameters="c: T.handle") + _SUMS.format("C", "c", shape=block.sums)
    head += _ROOT.format(reads="", writes=f"C[{whole}]")
    numbers = "".join(f"        C[0, 0, 0, {i}] = {n}\n" for i, n in enumerate(_configuration(block)))
    zero = _loops([*block.sums], "t, i, h, j", "SSSS", "C[t, i, h, j] = 0")
    return head + zero, head + numbers + _call("ldtilecfg", "T.address_of(C[0, 0, 0, 0])")


def _update(block: Block, whole: str) -> tuple[str, str]:
    """C += A x W: [2 x rows, depth] u8 times [depth, 2 x 16] s8."""
    r, d, (sy, sx) = block.rows, block.depth, block.strides
    across = (r if block.tall else GROUPS * r) * sx - sx + 1
    shape: list[int] = [across + d // 4 - 1] if block.narrow else [across, d]
    place, second = ("i", 0) if block.tall else (f"(t * {r} + i)", r * sx)
    at = [f"{place} * {sx} + k"] if block.narrow else [f"{place} * {sx}", "k * 4 + l"]
    origins = [[0] * len(shape), [second, *[0] * (len(shape) - 1)]]
    strides, bind = ["1"] if block.narrow else ["s1", "1"], "" if block.narrow else "    s1 = T.int32()\n"
    if block.tall:
        shape, at, origins = (
            [(GROUPS - 1) * sy + 1, *shape],
            [f"t * {sy}", *at],
            [[a * sy, *origins[0]] for a in (0, 1)],
        )
        strides, bind = ["s0", *strides], f"    s0 = T.int32()\n{bind}"
    kind = "uint32" if block.narrow else "uint8"
    element, step = f"A[{', '.join(at)}]", f"T.int64({4 * sx})" if block.narrow else f"T.cast(s1 * {sx}, 'int64')"
    if block.narrow:
        element = f"T.bitwise_and(T.shift_right({element}, T.cast(l * 8, 'uint32')), T.uint32(255))"
    head = _HEAD.format(parameters="a: T.handle, w: T.handle, c: T.handle") + bind
    head += f"    A = T.match_buffer(a, {tuple(shape)}, '{kind}', strides=[{', '.join(strides)}], offset_factor=1)\n"
    head += f"    W = T.match_buffer(w, ({PANELS}, {d // 4}, {LANES}, 4), 'int8', offset_factor=1)\n"
    head += _SUMS.format("C", "c", shape=block.sums)
    read = f"C[{whole}], A[{', '.join(f'0:{n}' for n in shape)}], W[0:{PANELS}, 0:{d // 4}, 0:{LANES}, 0:4]"
    head += _ROOT.format(reads=read, writes=f"C[{whole}]")
    product = f"T.cast({element}, 'int32') * T.cast(W[h, k, j, l], 'int32')"
    body = f"C[t, i, h, j] = C[t, i, h, j] + {product}"
    made = head
    for b in range(PANELS):
        made += _call("tileloadd64", f"T.int8({6 + b})", f"T.address_of(W[{b}, 0, 0, 0])", f"T.int64({BYTES})")
    for a, origin in enumerate(origins):
        made += _call("tileloadd64", f"T.int8({4 + a})", f"T.address_of(A[{', '.join(map(str, origin))}])", step)
        for b in range(PANELS):
            made += _call("tdpbusd", f"T.int8({PANELS * a + b})", f"T.int8({4 + a})", f"T.int8({6 + b})")
    return head + _loops([*block.sums, d // 4, 4], "t, i, h, j, k, l", "SSSSRR", body), made


def _store(block: Block, whole: str) -> tuple[str, str]:
    """D = C, and the tiles given back."""
    head = _HEAD.format(parameters="c: T.handle, d: T.handle")
    head += _SUMS.format("C", "c", shape=block.sums) + _SUMS.format("D", "d", shape=block.sums)
    head += _ROOT.format(reads=f"C[{whole}]", writes=f"D[{whole}]")
    made = head
    for a, b in itertools.product(range(GROUPS), range(PANELS)):
        place = f"T.address_of(D[{a}, 0, {b}, 0])"
        made += _call("tilestored64", f"T.int8({PANELS * a + b})", place, f"T.int64({PANELS * BYTES})")
    return head + _loops([*block.sums], "t, i, h, j", "SSSS", "D[t, i, h, j] = C[t, i, h, j]"), made + _call(
        "tilerelease"
    )


@functools.cache
def intrinsics(block: Block) -> tuple[str, str, str]:
    """Registered names of the start, the update and the store of a block's sums [2, rows, 2, 16]."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import from_source

    whole = ", ".join(f"0:{n}" for n in block.sums)
    parts = {"start": _start(block, whole), "update": _update(block, whole), "store": _store(block, whole)}
    for part, (description, made) in parts.items():
        TensorIntrin.register(f"{block.name}_{part}", from_source(description), from_source(made), override=True)
    return f"{block.name}_start", f"{block.name}_update", f"{block.name}_store"
