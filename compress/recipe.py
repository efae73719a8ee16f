"""A compressed model on disk with no pickle: `recipe.json` rebuilds the module, `model.safetensors` is loaded strictly.

Quantized weights are stored as integers (four to a byte at 2 bits, two up to 4 bits) and their scales.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.fold import fold, fold_opaque
from compress.graph import plain_layers, trace
from compress.quantize import scheme
from compress.quantize.plan import Plan, apply_plan
from compress.quantize.walk import prepare
from compress.reparam import mergeable
from deploy.arch import Preprocess, is_known
from deploy.checkpoint import instantiate
from deploy.errors import UserError
from deploy.inputs import InputSpec

FORMAT = 2
_KEYS = {"arch", "arch_args", "inputs", "preprocess", "merge", "fold", "plan"}
RECIPE, STATE, FLOAT, PROGRAM = "recipe.json", "model.safetensors", "float.safetensors", "program.pt2"


def per_byte(bits: int) -> int:
    """How many weights of these bits a stored byte holds: four of 2 bits, two of up to 4, else one."""
    return 4 if bits == 2 else 2 if bits <= 4 else 1


def pack(values: Tensor, bits: int) -> Tensor:
    """int8 integers of at most 4 bits, several to a byte (the first in the low bits); others as they are."""
    count = per_byte(bits)
    if count == 1:
        return values
    width = 8 // count
    flat = values.reshape(-1)
    flat = torch.cat([flat, flat.new_zeros(-flat.numel() % count)]).to(torch.int16) & ((1 << width) - 1)
    parts = [flat[k::count] << (k * width) for k in range(count)]
    return torch.stack(parts).sum(0).to(torch.uint8)


def unpack(stored: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Inverse of pack."""
    count = per_byte(bits)
    if count == 1:
        return stored.reshape(shape)
    width = 8 // count
    raw = stored.to(torch.int16)
    fields = [(raw >> (k * width)) & ((1 << width) - 1) for k in range(count)]
    flat = torch.stack(fields, 1).reshape(-1)[: shape.numel()]
    return torch.where(flat >= 1 << (width - 1), flat - (1 << width), flat).to(torch.int8).reshape(shape)


def structure(module: nn.Module, inputs: int, merge: bool, fold_norms: bool) -> tuple[nn.Module, list[Any]]:
    """The structural steps before quantization, by flags alone, so that a recipe repeats them exactly.

    Returns the graph (or the module where it cannot be traced) and the fold records.
    """
    if merge and mergeable(module):
        from timm.utils.model import reparameterize_model

        module = reparameterize_model(module, inplace=True)
    module = module.eval()
    if not isinstance(module, fx.GraphModule):
        plain_layers(module)
    gm = trace(module, inputs)
    if gm is None:
        return module, []
    records = fold(gm) + fold_opaque(gm) if fold_norms else []
    return gm, records


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors to store: quantized weights as integers under `<name>.weight`, everything else as it is."""
    state = {k: v.detach().contiguous() for k, v in module.state_dict().items()}
    for name, layer in module.named_modules():
        if scheme.is_quantized(layer):
            state[f"{name}.weight"] = pack(scheme.integers(layer), scheme.bits_of(layer)).contiguous()
    shared: dict[int, str] = {}
    return {k: (v.clone() if shared.setdefault(v.data_ptr(), k) != k else v) for k, v in state.items()}


def stored_bytes(state: dict[str, Tensor]) -> int:
    """Size of the file that a state makes."""
    from safetensors.torch import save

    return len(save(state))


def store(path: Path, tensors: dict[str, Tensor], meta: dict[str, str] | None = None) -> None:
    """Write a safetensors file. A full disk is an OSError here, where the library's own writer would raise its own error."""
    from safetensors.torch import save

    path.write_bytes(save(tensors, meta))


def restore(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Load stored tensors strictly. Raises UserError when names, shapes or types differ."""
    full = dict(state)
    for name, layer in module.named_modules():
        if not scheme.is_quantized(layer):
            continue
        key, scale_key = f"{name}.weight", f"{name}.weight_quant.tensor_quant.scaling_impl.value"
        if key not in full or scale_key not in full:
            raise UserError(f"{where} lacks {key!r} or its scale; run deploy compress again")
        weight: Tensor = layer.weight  # type: ignore[assignment]
        try:
            bits = scheme.bits_of(layer)
        except RuntimeError:
            raise UserError(
                f"{where} does not fit its recipe: {name} has other channels; run deploy compress again"
            ) from None
        count = -(-weight.numel() // per_byte(bits))
        if full[key].numel() != count:
            raise UserError(
                f"{where} holds {full[key].numel()} values in {key!r}, the model wants {count}; run deploy compress again"
            )
        if full[scale_key].numel() not in (1, scheme.weight_scale(layer).numel()):
            raise UserError(f"{where} has scales in {scale_key!r} that do not fit the model; run deploy compress again")
        full[key] = unpack(full[key], bits, weight.shape).to(torch.float32) * full[scale_key]
    try:
        module.load_state_dict(full, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{where} does not fit its recipe: {str(error).splitlines()[-1].strip()[:160]}; run deploy compress again"
        ) from None


def _float_module(folder: Path, recipe: dict[str, Any], arch: str) -> nn.Module:
    if recipe["arch"] is None:
        from deploy.program import load_program

        return load_program(folder / PROGRAM)[0]
    name = str(recipe["arch"])
    known = is_known(name)
    if not known and arch != name:
        raise UserError(
            f"{folder} was made from the factory {name!r}; a name found in a file imports nothing: give --arch {name}"
        )
    return instantiate(name, recipe["arch_args"], from_user=not known)


def read(folder: Path) -> dict[str, Any]:
    """The recipe of a compressed folder. Raises UserError when it is missing or not of this format."""
    path = folder / RECIPE
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} is no compressed model: {RECIPE} is missing or damaged; run deploy compress again"
        ) from None
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT or not set(recipe) >= _KEYS:
        raise UserError(f"{path} has not the format {FORMAT} of this version; run deploy compress again")
    return recipe


def inputs_of(recipe: dict[str, Any]) -> tuple[InputSpec, ...]:
    return tuple(InputSpec.from_json(row) for row in recipe["inputs"])


def preprocess_of(recipe: dict[str, Any]) -> Preprocess:
    return Preprocess.from_json(recipe["preprocess"])


def load(folder: str | Path, arch: str = "") -> nn.Module:
    """The compressed module of a folder, in eval mode. `arch` confirms a factory outside the known families.

    Raises UserError when the folder, its recipe or its weights are not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    recipe = read(folder)
    module = _float_module(folder, recipe, arch)
    if recipe.get("prune") is not None:
        from compress.prune.run import rebuild

        module = rebuild(module, recipe["prune"], inputs_of(recipe))
    module, _ = structure(module, len(recipe["inputs"]), recipe["merge"], recipe["fold"])
    if isinstance(module, fx.GraphModule):
        prepare(module)
    apply_plan(module, Plan.from_json(recipe["plan"]))
    try:
        state = load_file(folder / STATE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / STATE} cannot be read ({str(error)[:100]}); run deploy compress again") from None
    restore(module, state, folder / STATE)
    return module.eval()


def load_float(folder: str | Path, arch: str = "") -> nn.Module:
    """The float model that a compressed folder was made from (baseline and teacher)."""
    from safetensors.torch import load_file

    folder = Path(folder)
    recipe = read(folder)
    module = _float_module(folder, recipe, arch)
    if recipe["arch"] is not None:
        module.load_state_dict(load_file(folder / FLOAT), strict=True)
    return module.eval()
