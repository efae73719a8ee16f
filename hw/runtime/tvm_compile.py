"""Child process of the TVM runtime: `python -m hw.runtime.tvm_compile MODEL.onnx OUT.so`."""

from __future__ import annotations

import sys

import onnx


def compile_file(source: str, library: str) -> None:
    """Import an ONNX file into Relax, compile it for this CPU, export a shared library."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(onnx.load(source), keep_params_in_input=False)
    module = relax.transform.DecomposeOpsForInference()(module)
    executable = tvm.compile(
        module, target=tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    )
    executable.export_library(library)


if __name__ == "__main__":
    compile_file(sys.argv[1], sys.argv[2])
