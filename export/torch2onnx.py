"""torch -> ONNX (float) and QONNX, with a second try where the exporter cannot take fused attention."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize.scheme import DynamicActivation
from deploy.errors import ToolError
from deploy.inputs import InputSpec, examples
from export.onnxfile import strip
from export.square_sample import TRANSLATION

log = logging.getLogger(__name__)
FLOAT_OPSET = 21


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention written out, for shapes that exporters refuse fused."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


def unfuse_attention(module: nn.Module) -> nn.Module:
    """A copy whose attention is written out."""
    module = copy.deepcopy(module)
    for child in module.modules():
        if hasattr(child, "fused_attn"):
            child.fused_attn = False  # type: ignore[assignment]
        if isinstance(child, fx.GraphModule):
            for node in child.graph.nodes:
                if (
                    node.op == "call_function"
                    and node.target is F.scaled_dot_product_attention
                    and not node.kwargs.get("is_causal")
                ):
                    node.target = plain_attention
            child.recompile()
    return module


def _quietly(work: Callable[[], Any]) -> Any:
    """Run an exporter with its chatter kept off stdout and stderr."""
    sink = io.StringIO()
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            return work()
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


def _with_retry(
    module: nn.Module, what: str, export: Callable[[nn.Module], onnx.ModelProto]
) -> tuple[onnx.ModelProto, list[str]]:
    training = [
        m for m in module.modules() if m.training
    ]  # a trace in training mode would change BatchNorm's statistics
    module.eval()
    try:
        return export(module), []
    except Exception as first:  # noqa: BLE001 - exporters raise anything; both failures are reported below
        log.info("%s: the exporter failed (%s); trying again with attention written out", what, _line(first))
        try:
            return export(unfuse_attention(module)), [
                "attention was written out, because the exporter cannot take it fused"
            ]
        except Exception as second:
            raise ToolError(
                f"torch.onnx cannot export this model as {what}: {_line(second)}; report the operator, or replace it in the model",
                str(first)[-2000:],
            ) from second
    finally:
        for m in training:
            m.training = True


def _line(error: Exception) -> str:
    lines = [x for x in str(error).splitlines() if x.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _tensors(specs: Sequence[InputSpec], seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x) for x in examples(specs, seed))


def _dynamic(specs: Sequence[InputSpec], dynamic_batch: bool) -> Any:
    return tuple({0: "N"} for _ in specs) if dynamic_batch else None


def export_float(
    module: nn.Module, specs: Sequence[InputSpec], dynamic_batch: bool = False
) -> tuple[onnx.ModelProto, list[str]]:
    """The float model as standard ONNX. Returns the file and remarks. Raises ToolError when torch.onnx refuses twice."""

    def export(m: nn.Module) -> onnx.ModelProto:
        program = _quietly(
            lambda: torch.onnx.export(
                m,
                _tensors(specs),
                dynamo=True,
                optimize=True,
                verbose=False,
                opset_version=FLOAT_OPSET,
                input_names=[s.name for s in specs],
                dynamic_shapes=_dynamic(specs, dynamic_batch),
                custom_translation_table=TRANSLATION,
            )
        )
        model = program.model_proto
        strip(model)
        return model

    return _with_retry(module, "ONNX", export)


def export_quantized(
    module: nn.Module, specs: Sequence[InputSpec], dynamic_batch: bool = False
) -> tuple[onnx.ModelProto, list[str]]:
    """The compressed model as QONNX (Quant nodes) through Brevitas. Dynamic ranges are left to the runtime lowering."""
    from brevitas.export import export_qonnx

    def export(m: nn.Module) -> onnx.ModelProto:
        handle, name = tempfile.mkstemp(suffix=".onnx")
        os.close(handle)
        path = Path(name)
        try:
            _quietly(
                lambda: export_qonnx(
                    m,
                    args=_tensors(specs),
                    export_path=str(path),
                    dynamo=True,
                    optimize=True,
                    external_data=False,
                    verbose=False,
                    keep_initializers_as_inputs=False,
                    input_names=[s.name for s in specs],
                    dynamic_shapes=_dynamic(specs, dynamic_batch),
                    custom_translation_table=TRANSLATION,
                )
            )
            model = onnx.load_model_from_string(path.read_bytes())
        finally:
            path.unlink(missing_ok=True)
        strip(model)
        return model

    dynamic = [m for m in module.modules() if isinstance(m, DynamicActivation)]
    for item in dynamic:
        item.export_as_float = True
    try:
        return _with_retry(module, "QONNX", export)
    finally:
        for item in dynamic:
            item.export_as_float = False
