"""Model files in, safely: safetensors, weights_only checkpoints, torch.export programs. Nothing in a file is ever executed
unless the user passes --trust-pickle, and no name in a file imports anything but a known architecture."""

from __future__ import annotations

import argparse
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import arch as archs
from deploy.errors import UserError
from deploy.inputs import InputSpec, parse_inputs

if TYPE_CHECKING:
    from torch import nn

MAX_BYTES = 16 << 30
MAX_HEADER = 100 << 20
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Loaded:
    """A float model ready for the stages. `arch` is None for exported programs, whose graph is the architecture."""

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    preprocess: archs.Preprocess
    arch: str | None
    arch_args: dict[str, Any]
    path: Path
    fixed_batch: bool = False


def kind_of(path: Path) -> str:
    """What a model file is: safetensors, torch, pt2, torchscript, pickle, onnx, folder or unknown. Reads only a few bytes.

    Raises UserError for a missing, empty or oversized file.
    """
    if path.is_dir():
        return "folder"
    if not path.exists():
        raise UserError(f"model file {path} does not exist; check the path")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"model file {path} is empty; the copy or download did not finish")
    if size > MAX_BYTES:
        raise UserError(f"model file {path} has {size / 1e9:.1f} GB; the limit is {MAX_BYTES >> 30} GB")
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as bundle:
                names = bundle.namelist()
        except zipfile.BadZipFile:
            raise UserError(f"model file {path} is a truncated zip archive; copy it again") from None
        leaves = {n.partition("/")[2] for n in names}
        if (
            "archive_format" in leaves
            or any(n.startswith("models/") for n in leaves)
            or "serialized_exported_program.json" in names
        ):
            return "pt2"
        if any(n.startswith("code/") for n in leaves) and "constants.pkl" in leaves:
            return "torchscript"
        return "torch" if any(n.endswith("data.pkl") for n in names) else "unknown"
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= min(MAX_HEADER, size):
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    return "onnx" if path.suffix == ".onnx" else "safetensors" if path.suffix == ".safetensors" else "unknown"


def _pickled_names(path: Path) -> list[str]:
    """The globals that a checkpoint's pickle would import, found without executing it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                name = next(n for n in bundle.namelist() if n.endswith("data.pkl"))
                data = bundle.read(name)
        else:
            data = path.read_bytes()
        found: list[str] = []
        strings: list[str] = []
        for code, value, _ in pickletools.genops(data):
            if code.name == "GLOBAL":
                found.append(str(value).replace(" ", "."))
            elif code.name == "STACK_GLOBAL" and len(strings) > 1:
                found.append(".".join(strings[-2:]))
            elif isinstance(value, str):
                strings.append(value)
    except (ValueError, StopIteration, OSError, zipfile.BadZipFile, KeyError):
        return []
    known = ("torch._utils.", "collections.OrderedDict", "torch.storage", "torch.FloatStorage", "torch.LongStorage")
    return [n for n in dict.fromkeys(found) if not n.startswith(known)]


def _read_torch(path: Path, trust: bool) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if trust:
            return _read_trusted(path)
        names = _pickled_names(path)
        if not names:
            raise UserError(
                f"model file {path} is damaged or no PyTorch checkpoint: {str(error).splitlines()[0][:120]}; save it again"
            ) from None
        raise UserError(
            f"model file {path} is a pickle that would run code when loaded ({', '.join(names[:3])}); save the weights instead, "
            "torch.save({'arch': 'timm:NAME', 'state_dict': model.state_dict()}, 'model.pt'), or pass --trust-pickle if you made the file"
        ) from None
    except (
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        UnicodeDecodeError,
        struct.error,
    ) as error:
        raise UserError(
            f"model file {path} is truncated or damaged: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}; copy it again"
        ) from None


def _read_trusted(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=False)  # the user asked for it by flag
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model file {path} needs code that is not importable here ({error}); put its folder on PYTHONPATH"
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {k: stream.get_tensor(k) for k in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"model file {path} is no valid safetensors file: {str(error)[:120]}; copy or save it again"
        ) from None


def _hub_config(path: Path) -> dict[str, Any]:
    """`config.json` beside the weights, as timm writes it for a hub ({"architecture": ..., "num_classes": ...})."""
    file = path.with_name("config.json")
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _state_and_arch(path: Path, trust: bool) -> tuple[Mapping[str, Any] | nn.Module, str | None, dict[str, Any]]:
    import torch

    kind = kind_of(path)
    if kind == "safetensors":
        state, meta = _read_safetensors(path)
        arch, raw = meta.get("arch"), meta.get("arch_args", "{}")
        try:
            args = json.loads(raw)
        except ValueError:
            raise UserError(f"model file {path}: its arch_args {raw[:60]!r} are not JSON; save it again") from None
        if arch is None:
            hub = _hub_config(path)
            arch = hub.get("architecture")
            args = {k: hub[k] for k in ("num_classes",) if arch and k in hub}
            if arch is None and "model_type" in hub:
                from deploy.hub import read_config

                arch, args = read_config(path) or (None, {})
        return state, arch, args
    if kind == "torchscript":
        raise UserError(
            f"model file {path} is TorchScript, which carries code; save the weights: torch.save({{'arch': ..., 'state_dict': model.state_dict()}}, 'model.pt')"
        )
    if kind not in ("torch", "pickle"):
        what = (
            "an ONNX graph; it goes to 'deploy profile'"
            if kind == "onnx"
            else "neither safetensors, a PyTorch checkpoint nor a .pt2 program"
        )
        raise UserError(f"model file {path} is {what}; give a checkpoint")
    loaded = _read_torch(path, trust)
    if isinstance(loaded, torch.nn.Module):
        return loaded, None, {}
    if not isinstance(loaded, Mapping):
        raise UserError(
            f"model file {path} holds a {type(loaded).__name__}; it must hold a state_dict or {{'arch': ..., 'state_dict': ...}}"
        )
    arch, args = loaded.get("arch"), loaded.get("arch_args") or {}
    if arch is not None and not isinstance(arch, str):
        raise UserError(f"model file {path}: its 'arch' is a {type(arch).__name__}, not a name; give --arch")
    if not isinstance(args, Mapping):
        raise UserError(f"model file {path}: its 'arch_args' are no mapping; give --arch and --arch-arg")
    inner = next((loaded[k] for k in _STATE_KEYS if isinstance(loaded.get(k), Mapping)), loaded)
    return inner, arch, dict(args)


def _without_prefix(tensors: Mapping[str, Any], wanted: Set[str] = frozenset()) -> dict[str, Any]:
    """Remove a wrapper's prefix (DataParallel, torch.compile, a training class) that every key has and the model does not."""
    found = dict(tensors)
    for prefix in _PREFIXES:
        if found and all(k.startswith(prefix) for k in found) and not any(k.startswith(prefix) for k in wanted):
            found = {k[len(prefix) :]: v for k, v in found.items()}
    return found


def _clean_state(path: Path, state: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise UserError(f"model file {path} holds no tensors; it must hold a state_dict")
    tensors = _without_prefix(tensors, set(wanted))
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked") and key not in tensors:
            tensors[key] = value
    missing, extra = [k for k in wanted if k not in tensors], [k for k in tensors if k not in wanted]
    if missing or extra:
        parts = [f"{len(missing)} missing (first {missing[0]!r})"] if missing else []
        parts += [f"{len(extra)} not in the model (first {extra[0]!r})"] if extra else []
        raise UserError(f"the weights of {path} do not fit the architecture: {', '.join(parts)}; give the right --arch")
    for key, value in wanted.items():
        if tuple(tensors[key].shape) != tuple(value.shape):
            raise UserError(
                f"the weights of {path} do not fit the architecture: {key!r} has shape {tuple(tensors[key].shape)}, the model "
                f"wants {tuple(value.shape)}; give the right --arch or --arch-arg num_classes=N"
            )
        if tensors[key].is_floating_point() and not bool(torch.isfinite(tensors[key]).all()):
            raise UserError(
                f"the weights of {path} hold NaN or infinity in {key!r}; the training run diverged: use an earlier checkpoint"
            )
        if tensors[key].is_floating_point() != value.is_floating_point():
            raise UserError(
                f"the weights of {path} have the type {tensors[key].dtype} in {key!r}; dequantize them to float first"
            )
    return tensors


def instantiate(arch: str, args: Mapping[str, Any], *, from_user: bool) -> nn.Module:
    """Build an architecture. Raises UserError when the factory refuses the arguments."""
    import torch

    factory = archs.resolve(arch, from_user=from_user)
    try:
        module = factory.build(**args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"the factory of {factory.name} refused the arguments {dict(args)}: {str(error).splitlines()[0][:160]}; change --arch-arg"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"the factory of {factory.name} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def load(
    path: Path, *, arch: str = "", arch_args: tuple[str, ...] = (), input_shape: str = "", trust_pickle: bool = False
) -> Loaded:
    """Read a model file into an nn.Module in eval mode with its input specs.

    `arch` is the user's own word and wins over the file's. Raises UserError, one sentence, for everything that does not fit.
    """
    if kind_of(path) == "pt2":
        from deploy.program import load_program

        program, program_inputs = load_program(path)
        return Loaded(program, program_inputs, archs.Preprocess(), None, {}, path, True)
    state, named, args = _state_and_arch(path, trust_pickle)
    import torch

    name = arch or named
    if isinstance(state, torch.nn.Module):
        if not arch:
            raise UserError(
                f"model file {path} is a pickled {type(state).__name__}; name its factory so that the result can be rebuilt "
                f"without pickle: --arch {type(state).__module__}:{type(state).__qualname__}"
            )
        state = state.state_dict()
    if not name:
        raise UserError(
            f"model file {path} names no architecture; give --arch timm:NAME, torchvision:NAME or pkg.mod:factory"
        )
    factory = archs.resolve(name, from_user=bool(arch))
    args = {**factory.own_args(_without_prefix(state)), **args, **archs.parse_args(arch_args)}
    module = instantiate(name if arch else factory.name, args, from_user=bool(arch))
    module.load_state_dict(_clean_state(path, factory.place(state, module), module.state_dict()), strict=True)
    module.eval()
    declared, preprocess = archs.describe_inputs(module, factory.name)
    specs = parse_inputs(input_shape) if input_shape else declared
    if specs is None:
        raise UserError(
            f"the architecture {factory.name} declares no input shape; give --input-shape, for example 1x3x224x224"
        )
    return Loaded(module, specs, preprocess, factory.name, args, path)


def check_forward(loaded: Loaded, seed: int = 0) -> list[Any]:
    """Run the model once on example inputs. Raises UserError when it does not take them; returns the output tensors."""
    import torch

    from deploy.inputs import examples

    values = [torch.from_numpy(x) for x in examples(loaded.inputs, seed)]
    try:
        with torch.no_grad():
            out = loaded.module(*values)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        shapes = ", ".join("x".join(map(str, s.shape)) for s in loaded.inputs)
        raise UserError(
            f"the model does not take an input of shape {shapes}: {str(error).splitlines()[0][:160]}; give --input-shape"
        ) from error
    return flatten(out)


def flatten(out: Any) -> list[Any]:
    """The tensors in a model's output, in order (tuples, lists, mappings and dataclass-like outputs)."""
    import torch

    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, Mapping):
        return [t for v in out.values() for t in flatten(v)]
    if isinstance(out, (list, tuple)):
        return [t for v in out for t in flatten(v)]
    return []
