"""ONNX files in, as hostile as any download: sizes, external data, annotations that qonnx and FINN would eval()."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx

from deploy.errors import UserError

MAX_BYTES = 2 << 30
MAX_ELEMENTS = 1 << 31
MAX_NODES = 200_000
DOMAINS = {
    "",
    "ai.onnx",
    "com.microsoft",
    "qonnx.custom_op.general",
    "deploy",
}  # qonnx imports the module that a domain names
_EVALUATED = {
    "tensor_layout",
    "tensor_sparsity",
    "mem_mode",
    "vivado_stitch_ifnames",
    "wrapper_filename",
    "res_total_synth",
    "floorplan_json",
    "rtlsim_so",
    "sizes_json",
    "instr_wrapper",
}


def load(path: Path, *, check: bool = True) -> onnx.ModelProto:
    """Parse and check an ONNX file without touching any other file, annotations scrubbed.

    Raises UserError, one sentence, when it is no ONNX, too large, names external data, or fails onnx.checker.
    """
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UserError(f"ONNX file {path} does not exist; check the path")
    size = path.stat().st_size
    if size == 0 or size > MAX_BYTES:
        raise UserError(f"ONNX file {path} has {size} bytes; it must have between 1 and {MAX_BYTES}")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is no ONNX file or is damaged ({str(error)[:60]}); export it again") from None
    if not model.graph.node and not model.graph.output:
        raise UserError(f"{path} is no ONNX file or holds no graph; export it again")
    if len(model.graph.node) > MAX_NODES:
        raise UserError(f"{path} has {len(model.graph.node)} nodes; the limit is {MAX_NODES}")
    if model.functions:
        raise UserError(
            f"{path} defines functions of its own ({model.functions[0].name!r}), which are not taken; inline them and export it again"
        )
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise UserError(
                    f"{path} has the operator {node.op_type!r} of the domain {node.domain[:60]!r}; known are ONNX, ONNX Runtime's, QONNX's and our own"
                )
    _check_tensors(path, model.graph)
    scrub(model)
    for graph in _graphs(model.graph):
        for index, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
    if check:
        try:
            onnx.checker.check_model(model)
        except (onnx.checker.ValidationError, ValueError) as error:
            raise UserError(f"{path} is not valid ONNX: {str(error).splitlines()[0][:160]}; export it again") from None
    return model


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs(attribute.g)
            for inner in attribute.graphs:
                found += _graphs(inner)
    return found


def _check_tensors(path: Path, top: onnx.GraphProto) -> None:
    for graph in _graphs(top):
        tensors = [
            *graph.initializer,
            *(s.values for s in graph.sparse_initializer),
            *(a.t for n in graph.node for a in n.attribute if a.HasField("t")),
            *(t for n in graph.node for a in n.attribute for t in a.tensors),
            *(a.sparse_tensor.values for n in graph.node for a in n.attribute if a.HasField("sparse_tensor")),
        ]
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise UserError(
                    f"{path} keeps the tensor {tensor.name!r} in another file; store it in one file (onnx.save_model without save_as_external_data)"
                )
            _check_dims(path, tensor.name, list(tensor.dims))
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_dims(path, value.name, [d.dim_value for d in value.type.tensor_type.shape.dim])


def _check_dims(path: Path, name: str, dims: list[int]) -> None:
    total = 1
    for dim in dims:
        if dim < 0:
            raise UserError(f"{path} gives {name!r} the negative dimension {dim}; export it again")
        total *= max(dim, 1)
    if total > MAX_ELEMENTS:
        raise UserError(f"{path} gives {name!r} {total} elements; the limit is {MAX_ELEMENTS}")


def scrub(model: onnx.ModelProto) -> list[str]:
    """Make every string that qonnx or FINN would evaluate a plain literal, or remove it; returns what was removed.

    The annotations are quantization annotations of tensors (`tensor_layout`, ...) and model metadata of the same names.
    """
    removed = []
    for graph in _graphs(model.graph):
        for annotation in graph.quantization_annotation:
            for row in list(annotation.quant_parameter_tensor_names):
                if row.key in _EVALUATED and not _literal(row.value):
                    annotation.quant_parameter_tensor_names.remove(row)
                    removed.append(f"{annotation.tensor_name}: {row.key}")
    for entry in list(model.metadata_props):
        if entry.key in _EVALUATED and not _literal(entry.value):
            model.metadata_props.remove(entry)
            removed.append(f"metadata: {entry.key}")
    return removed


def _literal(text: str) -> bool:
    if len(text) > 10_000:
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return isinstance(value, (list, tuple, dict, int, float, str))


def _module_of(node: onnx.NodeProto) -> str:
    """The torch module that a node came from, as torch.onnx recorded it; quantizers without their inner parts."""
    for row in node.metadata_props:
        if row.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(row.value)
            name = str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
            return ".".join(name.split(".")[:2]) if name.startswith("quantizers.") else name
    return ""


def label(model: onnx.ModelProto) -> None:
    """Name nodes after the torch modules they came from, and the outputs of activation quantizers after the quantizers."""
    taken: dict[str, int] = {}
    renamed: dict[str, str] = {}
    init = {i.name for i in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        module = _module_of(node)
        base = f"{module}/{node.op_type}" if module else f"{node.op_type}_"
        taken[base] = taken.get(base, 0) + 1
        node.name = base if module and taken[base] == 1 else f"{base}{taken[base]}"
        if node.op_type == "Quant" and node.input[0] not in init and node.output[0] not in outputs:
            renamed[node.output[0]] = (
                f"{module or node.output[0]}.q" if taken[base] == 1 else f"{module or node.output[0]}.q{taken[base]}"
            )
    for node in model.graph.node:
        for rows in (node.input, node.output):
            for i, name in enumerate(rows):
                rows[i] = renamed.get(name, name)
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def strip(model: onnx.ModelProto) -> None:
    """Name nodes after their torch modules and remove exporter metadata (local paths, stack traces)."""
    label(model)
    for graph in _graphs(model.graph):
        del graph.metadata_props[:]
        for rows in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
            for row in rows:
                del row.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
    del model.metadata_props[:]
