"""The quantizers: Brevitas modules whose stored parameter is the scale itself, so that a saved model reloads bit for bit.

Weights: signed, narrow range (-7..7 at 4 bits), zero point 0, a scale per output channel or per tensor. Activations: one
scale per tensor, zero point 0, signed or unsigned; a runtime may store signed ones as uint8 with zero point 128, the same
integers shifted.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("BREVITAS_JIT", "0")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.nn as qnn
    from brevitas.inject.enum import ScalingImplType, ScalingPerOutputType
    from brevitas.quant.scaled_int import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

_QUANT: dict[type, type] = {
    nn.Conv1d: qnn.QuantConv1d,
    nn.Conv2d: qnn.QuantConv2d,
    nn.Conv3d: qnn.QuantConv3d,
    nn.Linear: qnn.QuantLinear,
    nn.ConvTranspose1d: qnn.QuantConvTranspose1d,
    nn.ConvTranspose2d: qnn.QuantConvTranspose2d,
    nn.ConvTranspose3d: qnn.QuantConvTranspose3d,
}


class _One(nn.Module):
    """Makes the stored scaling parameter the scale itself."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, bit_width: Tensor, *_: Any) -> Tensor:
        return torch.ones_like(bit_width)


class _SignedActivation(Int8ActPerTensorFloat):
    scaling_impl_type = ScalingImplType.PARAMETER
    scaling_init = 1.0
    int_scaling_impl = _One


class _UnsignedActivation(Uint8ActPerTensorFloat):
    scaling_impl_type = ScalingImplType.PARAMETER
    scaling_init = 1.0
    int_scaling_impl = _One


class _Weight(Int8WeightPerChannelFloat):
    scaling_impl_type = ScalingImplType.PARAMETER
    scaling_init = 1.0
    int_scaling_impl = _One


class _WeightPerTensor(_Weight):
    scaling_per_output_type = ScalingPerOutputType.TENSOR


@dataclass(frozen=True)
class ActivationSpec:
    """Bits and signedness of one activation quantizer; `limit` is an upper bound of its range set by a clamp before it.

    scale: the step where the model fixes it (values that are integers by definition, such as distances), else None.
    """

    bits: int
    signed: bool
    limit: float | None = None
    scale: float | None = None

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Quantizer(nn.Module):
    """An activation quantizer with a scale of its own, [] float32. Input and output have the same shape.

    Until a scale is set (`ready` false) values pass through and `observer`, where there is one, sees them.
    """

    def __init__(self, spec: ActivationSpec, ready: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.ready = ready
        self.observer: Any = None
        kind = _SignedActivation if spec.signed else _UnsignedActivation
        self.act = qnn.QuantIdentity(act_quant=kind, bit_width=spec.bits)

    def _scaling(self) -> Any:
        return self.act.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl

    @property
    def scale(self) -> float:
        return float(self._scaling().value.detach())

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        self._scaling().value.fill_(max(scale, 1e-9))
        self.ready = True

    def share(self, other: Quantizer) -> None:
        """Take another quantizer's scale parameter for one's own."""
        self._scaling().value = other._scaling().value

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(x)
        return self.act(x) if self.ready else x


class DynamicActivation(nn.Module):
    """uint8 quantization with the range of the tensor at hand, as ONNX DynamicQuantizeLinear defines it (opset 11).

    `export_as_float` makes it an identity while the graph is exported; the runtime lowering puts the operator in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.export_as_float = False

    def forward(self, x: Tensor) -> Tensor:
        if self.export_as_float:
            return x
        low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.clamp(torch.round(-low / scale), 0, 255)
        steps = x / scale
        if torch.is_grad_enabled():  # gradients pass the rounding straight through; the sum below is exact
            steps = x / scale.detach()
            steps = steps + (torch.round(steps) - steps).detach()
            return (torch.clamp(steps + zero.detach(), 0, 255) - zero.detach()) * scale.detach()
        return (torch.clamp(torch.round(steps) + zero, 0, 255) - zero) * scale


class Around(nn.Module):
    """A layer with quantizers before and after it, for layers that the graph does not show one by one."""

    def __init__(self, layer: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.before = before if before is not None else nn.Identity()
        self.after = after if after is not None else nn.Identity()

    @property
    def weight(self) -> Any:
        """The layer's weight, for parents that look at it (nn.TransformerEncoderLayer does)."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)))


def is_leaf(module: nn.Module) -> bool:
    """Modules that stay single nodes when a graph is traced."""
    return isinstance(module, (Quantizer, DynamicActivation)) or type(module).__module__.startswith("brevitas.")


def supported(module: nn.Module) -> bool:
    """Whether a layer has a quantized form (exact types only: a subclass may compute something else)."""
    return type(module) in _QUANT or type(module) is nn.Embedding


def quantized_layer(layer: nn.Module, bits: int, per_channel: bool = True) -> nn.Module:
    """The Brevitas form of a float layer, holding the same weight and bias; its scale is still 1.

    Grouped transposed convolutions and embeddings have one scale per tensor, because Brevitas has no finer one for them.
    """
    grouped_transpose = "Transpose" in type(layer).__name__ and getattr(layer, "groups", 1) > 1
    quantizer = _WeightPerTensor if grouped_transpose or not per_channel else _Weight
    if type(layer) is nn.Embedding:
        new = qnn.QuantEmbedding(
            layer.num_embeddings,
            layer.embedding_dim,
            padding_idx=layer.padding_idx,
            weight_quant=_WeightPerTensor,
            weight_bit_width=bits,
        )
    elif isinstance(layer, nn.Linear):
        new = qnn.QuantLinear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            weight_quant=quantizer,
            weight_bit_width=bits,
        )
    else:
        conv: Any = layer
        args = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "bias": conv.bias is not None,
        }
        if hasattr(conv, "output_padding") and "Transpose" in type(conv).__name__:
            args["output_padding"] = conv.output_padding
        new = _QUANT[type(layer)](
            conv.in_channels, conv.out_channels, conv.kernel_size, weight_quant=quantizer, weight_bit_width=bits, **args
        )
        if conv.padding_mode != "zeros":
            new.padding_mode = conv.padding_mode
            new._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
    new.weight.data = layer.weight.data.clone()  # type: ignore[operator, union-attr]
    if getattr(layer, "bias", None) is not None:
        new.bias.data = layer.bias.data.clone()  # type: ignore[operator, union-attr]
    return new.train(layer.training)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a layer with a quantized weight."""
    return isinstance(module, (*_QUANT.values(), qnn.QuantEmbedding))


def bits_of(layer: nn.Module) -> int:
    return int(layer.weight_quant.bit_width())  # type: ignore[operator, union-attr]


def weight_scale(layer: nn.Module) -> Tensor:
    """The scale parameter of a quantized layer, broadcastable against its weight."""
    return layer.weight_quant.tensor_quant.scaling_impl.value  # type: ignore[union-attr, return-value]


@torch.no_grad()
def set_weight_scale(layer: nn.Module, scale: Tensor) -> None:
    value = weight_scale(layer)
    value.copy_(scale.reshape(value.shape))


def is_per_channel(layer: nn.Module) -> bool:
    """Whether a quantized layer has a scale per output channel (a layer of one channel counts as per tensor)."""
    return weight_scale(layer).numel() > 1


@torch.no_grad()
def integers(layer: nn.Module) -> Tensor:
    """The weight of a quantized layer as int8 integers, in its own shape."""
    high = (1 << (bits_of(layer) - 1)) - 1
    return torch.clamp(torch.round(layer.weight / weight_scale(layer)), -high, high).to(torch.int8)  # type: ignore[operator]


def output_axis(layer: nn.Module) -> int:
    """The axis of the weight that counts output channels (of one group, for transposed convolutions)."""
    return 1 if "Transpose" in type(layer).__name__ else 0
