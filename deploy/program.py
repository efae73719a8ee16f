"""torch.export programs (.pt2) in, without their pickles, and their graphs raised back to layers.

torch.export.load unpickles several members of the archive (sample inputs always, weights and constants on request), so an
untrusted file would run code. Here the archive is rewritten first: sample inputs are blanked, every other member that could
hold a pickle is refused.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from deploy.checkpoint import flatten
from deploy.errors import BoundError, UserError
from deploy.inputs import InputSpec, examples

_ALLOWED = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.data/(serialization_id|version)|\.format_version|"
    r"models/[^/]+\.json|extra/[^/]+|data/weights/(weight_\d+|[^/]+_config\.json)|data/constants/(tensor_\d+|[^/]+_config\.json)|"
    r"data/sample_inputs/[^/]+\.pt)"
)
_EXPRESSION = re.compile(
    r"(?:[su]\d+|\d+|Symbol\('[su]\d+'(?:, (?:positive|integer)=True)*\)|Integer\(\d+\)|(?:Mul|Add|Pow|FloorDiv|Mod|Max|Min)\(|[ ()+*/,-])+"
)
MAX_BYTES = 16 << 30
_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}
_ATEN = torch.ops.aten


def _without_pickles(path: Path) -> io.BytesIO:
    """The archive with nothing in it that torch.export would unpickle. Raises UserError for members that could be pickles."""
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as target:
            if sum(info.file_size for info in source.infolist()) > MAX_BYTES:
                raise UserError(f"program {path} unpacks to more than {MAX_BYTES >> 30} GB; that is the limit")
            for info in source.infolist():
                name = info.filename
                if not _ALLOWED.fullmatch(name) or ".." in name:
                    raise UserError(
                        f"program {path} holds {name!r}, which may carry code; export it again with torch.export.save of torch 2.12"
                    )
                content = b"" if "/data/sample_inputs/" in name else source.read(info)
                if name.endswith("_config.json") and _uses_pickle(json.loads(content)):
                    raise UserError(
                        f"program {path} stores pickled tensors ({name}); export it again from plain tensors"
                    )
                if name.endswith(".json") and "/models/" in name:
                    _check_expressions(path, json.loads(content))
                target.writestr(name, content)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"program {path} is damaged ({str(error)[:80]}); export it again") from None
    clean.seek(0)
    return clean


def _check_expressions(path: Path, value: Any) -> None:
    """torch.export hands these strings to sympy, which evaluates them: only integers, symbols and arithmetic may be in them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str" and not (isinstance(inner, str) and _EXPRESSION.fullmatch(inner)):
                raise UserError(
                    f"program {path} holds the shape expression {str(inner)[:60]!r}, which may carry code; export it again with torch.export.save"
                )
            _check_expressions(path, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_expressions(path, inner)
    elif isinstance(value, str) and "__" in value and "(" in value:
        raise UserError(
            f"program {path} holds the text {value[:60]!r}, which may carry code; export it again with torch.export.save"
        )


def _uses_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return any((k == "use_pickle" and bool(v)) or _uses_pickle(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_uses_pickle, value))


def load_program(path: Path) -> tuple[fx.GraphModule, tuple[InputSpec, ...]]:
    """The program's graph with its layers raised to modules, and its input specs. Raises UserError when it cannot be read."""
    clean = _without_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(clean)
    except (
        RuntimeError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        AssertionError,
        EOFError,
        IndexError,
    ) as error:
        raise UserError(
            f"program {path} cannot be read by torch {torch.__version__}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}; export it again"
        ) from None
    names = list(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
                raise UserError(
                    f"program {path} has the input {node.name!r} that is no float32, int or bool tensor; export the model with tensor inputs"
                )
            specs.append(
                InputSpec(
                    node.name, tuple(int(n) if isinstance(n, int) else 1 for n in value.shape), _DTYPES[value.dtype]
                )
            )
    values = [torch.from_numpy(x) for x in examples(specs, 0)]
    with torch.no_grad():
        want = flatten(program.module()(*values))
        raised = raise_layers(program.module())
        got = flatten(raised(*values))
    for a, b in zip(got, want, strict=True):
        if not torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-4 * float(b.float().abs().max()) + 1e-12):
            raise BoundError(
                f"program {path}: the layers read back from the graph compute something else; report this model"
            )
    return raised, tuple(specs)


def _tensor(root: nn.Module, node: Any) -> torch.Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = root
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None


def _arg(node: fx.Node, index: int, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else default


def _one(value: Any, n: int) -> tuple[int, ...]:
    items = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return tuple(items * n if len(items) == 1 else items)


def _conv(node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
    n = weight.ndim - 2
    stride, dilation, groups = _one(_arg(node, 3, 1), n), _one(_arg(node, 5, 1), n), int(_arg(node, 6, 1))
    padding = _arg(node, 4, 0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    pad = padding if isinstance(padding, str) else _one(padding, n)
    return kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        pad,
        dilation,
        groups,
        bias is not None,
    )  # type: ignore[arg-type]


def _deconv(node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
    n = weight.ndim - 2
    groups = int(_arg(node, 6, 1))
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1]
    return kind(
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        _one(_arg(node, 3, 1), n),
        _one(_arg(node, 4, 0), n),  # type: ignore[arg-type]
        _one(_arg(node, 5, 0), n),
        groups,
        bias is not None,
        _one(_arg(node, 7, 1), n),
    )  # type: ignore[arg-type]


def _linear(node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
    return nn.Linear(weight.shape[1], weight.shape[0], bias is not None)


_LAYERS = {
    _ATEN.conv1d.default: _conv,
    _ATEN.conv2d.default: _conv,
    _ATEN.conv3d.default: _conv,
    _ATEN.conv1d.padding: _conv,
    _ATEN.conv2d.padding: _conv,
    _ATEN.conv_transpose1d.default: _deconv,
    _ATEN.conv_transpose2d.input: _deconv,
    _ATEN.conv_transpose3d.input: _deconv,
    _ATEN.linear.default: _linear,
}
_SIMPLE = {
    _ATEN.relu.default: nn.ReLU,
    _ATEN.relu_.default: nn.ReLU,
    _ATEN.sigmoid.default: nn.Sigmoid,
    _ATEN.silu.default: nn.SiLU,
    _ATEN.silu_.default: nn.SiLU,
    _ATEN.hardswish.default: nn.Hardswish,
    _ATEN.hardswish_.default: nn.Hardswish,
    _ATEN.hardsigmoid.default: nn.Hardsigmoid,
}
_FUNCTIONS = {
    _ATEN.add.Tensor: torch.add,
    _ATEN.add_.Tensor: torch.add,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.mul_.Tensor: torch.mul,
    _ATEN.cat.default: torch.cat,
    _ATEN.flatten.using_ints: torch.flatten,
    _ATEN.mean.dim: torch.mean,
    _ATEN.adaptive_avg_pool2d.default: nn.functional.adaptive_avg_pool2d,
    _ATEN.avg_pool2d.default: nn.functional.avg_pool2d,
    _ATEN.max_pool2d.default: torch.max_pool2d,
    _ATEN.reshape.default: torch.reshape,
    _ATEN.permute.default: torch.permute,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.unsqueeze.default: torch.unsqueeze,
}


def _put(gm: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    taken = {n for n, _ in gm.named_modules()}
    if name in taken:
        name = next(f"{name}_{i}" for i in range(2, len(taken) + 3) if f"{name}_{i}" not in taken)
    gm.add_submodule(name, module.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def raise_layers(gm: fx.GraphModule) -> fx.GraphModule:
    """Turn the aten calls of an exported graph back into nn.Modules and torch functions, which the passes know.

    Rules: 1. convolutions, transposed convolutions and linear calls on stored tensors become layers holding them; 2. eval-mode
    batch_norm becomes nn.BatchNorm; 3. activations become modules; 4. common aten functions become their torch twins; 5. input
    guards and dropout go; everything else stays as it is.
    """
    for index, node in enumerate(list(gm.graph.nodes)):
        if node.op == "call_module" and "_guards" in str(node.target):
            gm.graph.erase_node(node)
            continue
        if node.op != "call_function":
            continue
        target = node.target
        if target in (_ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.contiguous.default, _ATEN.alias.default):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif target in _LAYERS:
            weight, bias = _tensor(gm, node.args[1]), _tensor(gm, _arg(node, 2, None))
            if weight is None or (bias is None and _arg(node, 2, None) is not None):
                continue
            layer: Any = _LAYERS[target](node, weight, bias)
            layer.weight.data = weight.detach().clone()
            if bias is not None:
                layer.bias.data = bias.detach().clone()
            _put(gm, node, f"layers.{_stem(node.args[1], index)}", layer)
        elif target is _ATEN.batch_norm.default and not node.args[5]:
            weight, bias, mean, var = (_tensor(gm, a) for a in node.args[1:5])
            if mean is None or var is None:
                continue
            norm = nn.BatchNorm2d(len(mean), float(node.args[7]), affine=weight is not None)
            norm.running_mean, norm.running_var = mean.detach().clone(), var.detach().clone()
            if weight is not None and bias is not None:
                norm.weight.data, norm.bias.data = weight.detach().clone(), bias.detach().clone()
            norm._check_input_dim = lambda _: None  # type: ignore[method-assign]
            _put(gm, node, f"norms.{_stem(node.args[3], index)}", norm)
        elif target in _SIMPLE:
            _put(gm, node, f"acts.{node.name}", _SIMPLE[target]())
        elif target in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default):
            _put(gm, node, f"acts.{node.name}", nn.Hardtanh(float(_arg(node, 1, -1)), float(_arg(node, 2, 1))))
        elif target in _FUNCTIONS:
            node.target = _FUNCTIONS[target]
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    return fx.GraphModule(gm, _plain_signature(gm.graph)).eval()


def _plain_signature(graph: fx.Graph) -> fx.Graph:
    """The same graph with ordinary positional inputs and without export's pytree code."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        mapping[node] = new.node_copy(node, lambda n: mapping[n])
    for node in new.nodes:
        if node.op == "output" and isinstance(node.args[0], (list, tuple)) and len(node.args[0]) == 1:
            node.args = (node.args[0][0],)
    new.lint()
    return new


def _stem(node: Any, index: int) -> str:
    """`layer1.0.conv1` from the stored name of its weight (dots become underscores inside one level)."""
    name = str(node.target).rpartition(".")[0] if isinstance(node, fx.Node) else ""
    return name.replace(".", "_") if name else f"layer_{index}"
