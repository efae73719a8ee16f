"""ConvBN blocks in four modes while training: Train, Eval, Tune, Deploy (You et al., "Efficient ConvBN Blocks", arXiv 2305.11624).

With s = gamma / sqrt(var + eps) and the running statistics held constant:
  Train   batch statistics, the running ones are updated (torch's own).
  Eval    Y = w * X + b, Z = s (Y - mean) + beta: saves X and Y for the backward pass.
  Tune    w' = s w, b' = s (b - mean) + beta in every forward pass, Z = w' * X + b': saves X and w', not Y. The same function of
          the same parameters as Eval, so outputs and gradients are Eval's, and the optimizer's state and the state_dict stay.
  Deploy  w', b' are the parameters: cheapest, but each channel's step is 1/s^2 times that of Eval (and gamma, beta are gone).

Tune is done without a graph: a layer returns a `Deferred` output. An eval-mode batch_norm that takes it computes the folded
layer; anything else that looks at its values gets the plain ones, and leaves the layer in Eval mode. So control flow, functional calls, layers shared by several
BatchNorms and outputs used elsewhere need no special case. One thing is refused: an operation that changes a layer's input in
place between the layer and its BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from compress.fold import LAYERS, NORMS, TRANSPOSED, fold_after, scale_outputs


class Mode(StrEnum):
    """See the module's text."""

    TRAIN = "train"
    EVAL = "eval"
    TUNE = "tune"
    DEPLOY = "deploy"


_ABOUT = {
    torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.ndim.__get__, torch.Tensor.layout.__get__,
    torch.Tensor.is_sparse.__get__, torch.Tensor.is_quantized.__get__, torch.Tensor.dim, torch.Tensor.size, torch.Tensor.numel,
}  # fmt: skip
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Deferred(Tensor):
    """The output of a layer that has not been computed yet; shape and type are known."""

    _layer: nn.Module
    _input: Tensor
    _version_seen: int
    _plain: Tensor | None
    _seen: Callable[[nn.Module, Any], None] | None

    @staticmethod
    def make(layer: nn.Module, x: Tensor, shape: torch.Size, seen: Callable[[nn.Module, Any], None] | None) -> Deferred:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        made: Deferred = torch.Tensor._make_wrapper_subclass(Deferred, shape, dtype=dtype, device=x.device)  # type: ignore[attr-defined]
        made._layer, made._input, made._version_seen, made._plain, made._seen = layer, x, x._version, None, seen
        return made

    def source(self) -> Tensor:
        """The layer's input. Raises RuntimeError when it was changed in place since the layer was called."""
        if self._input._version != self._version_seen:
            raise RuntimeError(
                "the input of a convolution was changed in place before its BatchNorm ran; use Eval mode for this model"
            )
        return self._input

    def plain(self) -> Tensor:
        """The output as the layer computes it."""
        if self._plain is None:
            if self._seen is not None:
                self._seen(self._layer, None)
            forward = self._layer.__dict__.get("forward")
            if isinstance(forward, _Forward) and self._seen is None:
                forward.off = True
            self._plain = type(self._layer).forward(self._layer, self.source())
        return self._plain

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is F.batch_norm and isinstance(args[0], Deferred):
            done = _normalized(args[0], *args[1:], **kwargs)
            if done is not None:
                return done
        plain = partial(tree_map, lambda v: v.plain() if isinstance(v, Deferred) else v)
        return func(*plain(args), **plain(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a convolution output that is not computed; use Eval mode for this model")


def _normalized(
    y: Deferred,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """The folded layer, or None where this normalization is not a constant scale per output channel."""
    layer: Any = y._layer
    if training or mean is None or var is None or (isinstance(layer, nn.Linear) and y.ndim != 2):
        return None
    if y._seen is not None:
        y._seen(layer, mean)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if layer.bias is None else (layer.bias - mean) * scale
    if bias is not None:
        shift = shift + bias
    return _apply(layer, y.source(), scale_outputs(layer, layer.weight, scale), shift)


def _apply(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's function with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, TRANSPOSED):
        at = TRANSPOSED.index(next(t for t in TRANSPOSED if isinstance(layer, t)))
        return _TRANSPOSED[at](
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    return layer._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class _Forward:
    """A layer's forward in Tune mode. gate: defer only where the output is larger than the weight (N Ho Wo > Cin/g k k),
    which is where Tune saves memory: it keeps w' in place of Y."""

    def __init__(self, layer: nn.Module, gate: bool, seen: Callable[[nn.Module, Any], None] | None) -> None:
        self.layer, self.gate, self.seen = layer, gate, seen
        self.shapes: dict[torch.Size, torch.Size] = {}
        self.off = False  # something else than a BatchNorm read an output: Eval from then on

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self.layer
        if isinstance(x, Deferred):
            x = x.plain()
        batched = isinstance(layer, nn.Linear) or x.ndim == layer.weight.ndim
        if (
            self.off
            or x.is_inference()
            or args
            or kwargs
            or not batched
            or layer._backward_hooks
            or layer._backward_pre_hooks
        ):
            return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
        shape = self.shapes.get(x.shape)
        if shape is None:
            meta = partial(torch.empty, device="meta", dtype=torch.float32)
            zero = meta(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
            shape = self.shapes[x.shape] = _apply(layer, meta(x.shape), meta(layer.weight.shape), zero).shape
        if self.gate and shape.numel() <= layer.weight.numel():
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        return Deferred.make(layer, x, shape, self.seen)


def _computed(module: nn.Module, args: Any, out: Any) -> Any:
    """Forward hook of the whole module: nothing deferred leaves it."""
    return tree_map(lambda v: v.plain() if isinstance(v, Deferred) else v, out)


def _release(module: nn.Module) -> None:
    for layer in module.modules():
        for key in [k for k, hook in layer._forward_hooks.items() if hook is _computed]:
            del layer._forward_hooks[key]
        if isinstance(layer.__dict__.get("forward"), _Forward):
            del layer.__dict__["forward"]
        if getattr(layer.__dict__.get("train"), "func", None) is _stay_frozen:
            del layer.__dict__["train"]


def _defer(module: nn.Module, gate: bool, seen: Callable[[nn.Module, Any], None] | None = None) -> None:
    module.register_forward_hook(_computed)
    for layer in module.modules():
        if type(layer) in LAYERS:
            layer.__dict__["forward"] = _Forward(layer, gate, seen)


def _stay_frozen(norm: nn.Module, mode: bool = True) -> nn.Module:
    """In place of BatchNorm's train(): its statistics stay frozen when the model is put into training mode."""
    return norm


def set_mode(module: nn.Module, mode: Mode | str, *, gate: bool = True, example: Sequence[Tensor] = ()) -> list[str]:
    """Switch every ConvBN block of a module, in place, any time; the rest of the module keeps its mode.

    In Eval, Tune and Deploy the running statistics are frozen, also under module.train(). gate: Tune only where it saves memory.
    example: inputs for Deploy, which runs the module once to see which BatchNorm follows which layer. Returns the names of the
    BatchNorms that Deploy folded away (no way back); else nothing. Raises ValueError for Deploy without an example.
    """
    mode = Mode(mode)
    _release(module)
    folded = _deploy(module, example) if mode is Mode.DEPLOY else []
    for norm in module.modules():
        if isinstance(norm, NORMS):
            norm.train(mode is Mode.TRAIN)
            if mode is not Mode.TRAIN:
                norm.__dict__["train"] = partial(_stay_frozen, norm)
    if mode is Mode.TUNE:
        _defer(module, gate)
    return folded


@torch.no_grad()
def _deploy(module: nn.Module, example: Sequence[Tensor]) -> list[str]:
    """Fold the BatchNorms that alone follow a layer called once per pass (fold.py, rules 1, 2, 4)."""
    if not example:
        raise ValueError("Deploy mode needs example inputs to see which BatchNorm follows which layer")
    norms = {
        id(m.running_mean): (n, m) for n, m in module.named_modules() if type(m) in NORMS and m.running_mean is not None
    }
    readers: dict[nn.Module, list[Any]] = {}
    was = {m: m.training for m in module.modules()}
    module.eval()
    _defer(module, False, lambda layer, mean: readers.setdefault(layer, []).append(mean))
    try:
        module(*example)
    finally:
        _release(module)
        for m, training in was.items():
            m.training = training
    uses = [id(mean) for seen in readers.values() for mean in seen if mean is not None]
    done = []
    for layer, seen in readers.items():
        key = id(seen[0])
        if len(seen) != 1 or seen[0] is None or key not in norms or uses.count(key) != 1:
            continue
        name, norm = norms[key]
        norm.eval()
        fold_after(layer, norm)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, nn.Identity())
        done.append(name)
    return done
