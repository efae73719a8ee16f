"""Architecture names -> factories. Known families: our own models and those of installed packages (entry-point group
`deploy.models`), timm, torchvision, transformers, and `pkg.mod:factory`, which only the user's own flag may name."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from deploy.errors import UserError
from deploy.inputs import InputSpec

if TYPE_CHECKING:
    from torch import nn

GROUP = "deploy.models"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NAME = re.compile(r"[\w.\-/]+")


@dataclass(frozen=True)
class Preprocess:
    """How a uint8 image becomes the model's input: resize the short side, centre crop, /255, (x - mean) / std."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Preprocess:
        return cls(tuple(row.get("mean", ())), tuple(row.get("std", ())), int(row.get("resize", 0)))


@dataclass(frozen=True)
class Architecture:
    """A buildable architecture; `build(**args)` returns an nn.Module with its own initialisation."""

    name: str
    build: Callable[..., nn.Module]
    own_args: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda state: {}
    place: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] = lambda state, module: (
        state
    )  # a file's keys -> the module's


def parse_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("num_classes=10", "act=relu")` -> {"num_classes": 10, "act": "relu"}; values are JSON where they parse as JSON."""
    import json

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--arch-arg {pair!r} is not of the form name=value")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _own(name: str) -> Architecture:
    entries = {e.name: e for e in entry_points(group=GROUP)}
    if name not in entries:
        raise UserError(
            f"no installed package announces the model {name!r}; known are {', '.join(sorted(entries)) or 'none'}"
        )
    return Architecture(f"deploy:{name}", entries[name].load())


def _timm(name: str) -> Architecture:
    import timm

    base = name.removeprefix("hf_hub:").partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), 3)
        raise UserError(
            f"timm has no model {name!r}"
            + (f"; near names are {', '.join(near)}" if near else "; see timm.list_models()")
        )

    def own_args(state: Mapping[str, Any]) -> dict[str, Any]:
        cfg = timm.get_pretrained_cfg(base)
        head = cfg.classifier if cfg is not None else None
        first = cfg.first_conv if cfg is not None else None
        found: dict[str, Any] = {}
        if isinstance(head, str) and f"{head}.weight" in state:
            found["num_classes"] = int(state[f"{head}.weight"].shape[0])
        if isinstance(first, str) and f"{first}.weight" in state and state[f"{first}.weight"].ndim == 4:
            found["in_chans"] = int(state[f"{first}.weight"].shape[1])
        return found

    return Architecture(f"timm:{base}", lambda **a: timm.create_model(base, pretrained=False, **a), own_args)


def _torchvision(name: str) -> Architecture:
    import torchvision

    if name not in torchvision.models.list_models():
        near = difflib.get_close_matches(name, torchvision.models.list_models(), 3)
        raise UserError(f"torchvision has no model {name!r}" + (f"; near names are {', '.join(near)}" if near else ""))
    return Architecture(f"torchvision:{name}", lambda **a: torchvision.models.get_model(name, weights=None, **a))


def _transformers(name: str) -> Architecture:
    from deploy.hub import build, place_keys

    return Architecture(f"transformers:{name}", build(name), place=place_keys)


_FAMILIES: dict[str, Callable[[str], Architecture]] = {
    "deploy": _own,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def is_known(name: str) -> bool:
    """Whether an architecture is of a family that a file may name; anything else only the user's own flag may."""
    return name.partition(":")[0] in _FAMILIES


def attribute(flag: str, name: str) -> Any:
    """What `pkg.mod:attribute` names, for a name that the user gave with `flag`. Raises UserError when it is not there."""
    module_name, _, attribute_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute_name)
    except ImportError as error:
        raise UserError(
            f"{flag} {name}: cannot import {module_name!r} ({error}); put its folder on PYTHONPATH"
        ) from error
    except AttributeError:
        raise UserError(f"{flag} {name}: module {module_name!r} has no {attribute_name!r}") from None


def _factory(name: str) -> Architecture:
    factory = attribute("--arch", name)
    if not callable(factory):
        raise UserError(f"--arch {name!r} is not callable; name a function or class that returns the module")
    return Architecture(name, factory)


def resolve(name: str, *, from_user: bool) -> Architecture:
    """The architecture of that name.

    `timm:NAME`, `torchvision:NAME`, `deploy:NAME`; a bare name is looked for in these in the order deploy, timm,
    torchvision; `pkg.mod:factory` only with from_user=True. Raises UserError for anything else.
    """
    family, colon, rest = name.partition(":")
    if colon and family in _FAMILIES:
        if not _NAME.fullmatch(rest):
            raise UserError(f"architecture {name!r} is not a valid name; write for example timm:resnet18")
        return _FAMILIES[family](rest)
    if colon:
        if not from_user:
            raise UserError(
                f"the file asks for the factory {name!r}; a name found in a file imports nothing: "
                f"if you trust it, give it yourself with --arch {name}"
            )
        return _factory(name)
    if not _NAME.fullmatch(name):
        raise UserError(f"architecture {name!r} is not a valid name; write for example timm:resnet18")
    problems = []
    for look in (_own, _timm, _torchvision):
        try:
            return look(name)
        except UserError as error:
            problems.append(str(error))
    raise UserError(
        f"architecture {name!r} is unknown: {'; '.join(problems[1:])}; give --arch pkg.mod:factory for your own"
    )


def describe_inputs(module: nn.Module, name: str) -> tuple[tuple[InputSpec, ...] | None, Preprocess]:
    """Input specs and preprocessing that the architecture itself declares (attribute `inputs`, timm or torchvision config)."""
    own = getattr(module, "inputs", None)
    if isinstance(own, tuple) and own and all(isinstance(s, InputSpec) for s in own):
        declared = getattr(module, "preprocess", None)
        return own, declared if isinstance(declared, Preprocess) else Preprocess()
    family = name.partition(":")[0]
    if family == "timm":
        from timm.data import resolve_data_config

        cfg = resolve_data_config({}, model=module)
        channels, height, width = (int(n) for n in cfg["input_size"])
        channels = _first_channels(module) or channels
        size = getattr(
            getattr(module, "patch_embed", None), "img_size", None
        )  # as it was built, where its position table fixes it
        if isinstance(size, tuple) and size != (height, width) and not getattr(module, "dynamic_img_size", False):
            height, width = int(size[0]), int(size[1])
        spec = InputSpec("input", (1, channels, height, width))
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        if len(mean) != channels:
            mean, std = (0.5,) * channels, (0.5,) * channels
        return (spec,), Preprocess(mean, std, round(height / float(cfg["crop_pct"])))
    if family == "torchvision":
        import torchvision

        size = 224
        weights = torchvision.models.get_model_weights(name.partition(":")[2])
        for entry in weights:
            crop = getattr(entry.transforms(), "crop_size", None)
            if crop:
                size = int(crop[0] if isinstance(crop, (list, tuple)) else crop)
            break
        channels = _first_channels(module) or 3
        return (InputSpec("input", (1, channels, size, size)),), Preprocess(
            IMAGENET_MEAN, IMAGENET_STD, round(size / 0.875)
        )
    return None, Preprocess()


def _first_channels(module: nn.Module) -> int | None:
    from torch import nn

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    return None
