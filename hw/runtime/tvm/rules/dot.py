"""Tensor intrinsics of integer dot products: four unsigned bytes times `lanes` rows of four signed bytes, added to `lanes` 32-bit sums.

TVM's own intrinsic does not fit the LLVM in its 0.27 wheel (vpdpbusd takes bytes there, not words). No import of annotations here: TVMScript reads them.
"""

import functools

from hw.runtime.tvm.machine import Machine

GROUP = 4
_INSTRUCTIONS = {"vnni512": "llvm.x86.avx512.vpdpbusd.512", "vnni256": "llvm.x86.avx512.vpdpbusd.256"}


@functools.cache
def intrinsic(dot: str, lanes: int) -> str:
    """The registered name of the intrinsic for `lanes` sums."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import tirx as T
    from tvm.target.codegen import llvm_lookup_intrinsic_id

    number = int(llvm_lookup_intrinsic_id(_INSTRUCTIONS[dot]))
    sums, signed = f"int32x{lanes}", f"int8x{4 * lanes}"

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((4,), "uint8", offset_factor=1),  # type: ignore[valid-type]
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),  # type: ignore[valid-type]
        C: T.Buffer((lanes,), "int32", offset_factor=1),  # type: ignore[valid-type]
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),  # type: ignore[valid-type]
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),  # type: ignore[valid-type]
        C: T.Buffer((lanes,), "int32", offset_factor=1),  # type: ignore[valid-type]
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.uint32(number),
                C.vload([0], sums),
                T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), lanes), dtype=signed),
                B.vload([0, 0], signed),
                dtype=sums,
            )

    name = f"deploy_{dot}_{lanes}"
    TensorIntrin.register(name, description, implementation, override=True)
    return name


def named(machine: Machine, lanes: int) -> str:
    """The intrinsic of a machine for a vector of `lanes` sums, '' where it has none."""
    if machine.dot == "vnni512" and lanes in (8, 16):
        return intrinsic("vnni512" if lanes == 16 else "vnni256", lanes)
    if machine.dot == "vnni256" and lanes == 8:
        return intrinsic("vnni256", lanes)
    return ""


def factor(machine: Machine) -> str:
    """The type of the factors before they become 32-bit sums: NEON multiplies 16 bits into 32 and adds in one instruction."""
    return "int16" if machine.lanes == 4 else "int32"
