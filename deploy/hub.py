"""Architectures of the transformers package by class name, built from their config alone (nothing is fetched, no foreign code runs)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deploy.arch import Preprocess
from deploy.errors import UserError
from deploy.inputs import InputSpec

_IGNORED = ("_name_or_path", "architectures", "transformers_version", "model_type", "auto_map", "dtype", "torch_dtype", "quantization_config", "gradient_checkpointing")  # fmt: skip

# keys that name code, kernels or parts from elsewhere
_FOREIGN = (
    "_attn",
    "attn_",
    "backbone",
    "use_backbone",
    "use_timm",
    "use_pretrained",
    "pretrained",
    "model_args",
    "auto_",
)
_REFUSALS = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, ZeroDivisionError, AssertionError, IndexError, NotImplementedError)  # fmt: skip


class HubModel(nn.Module):
    """One transformers model with positional tensors in and one tensor out.

    Inputs: token numbers [N, T] and attention mask [N, T], or images [N, C, H, W]. Output: logits, or the last hidden state [N, T, D], or
    with pooling 'mean' or 'cls' one vector [N, D], of length 1 with `normalize`.
    """

    def __init__(self, model: Any, pooling: str, normalize: bool, tokens: int) -> None:
        super().__init__()
        self.model = model
        self.pooling, self.normalize = pooling, normalize
        self.project = nn.Identity()  # becomes a projection back where hidden dimensions were removed
        config = model.config
        self.names: tuple[str, ...]
        if model.main_input_name == "input_ids":
            self.names = ("input_ids", "attention_mask")
            self.inputs: tuple[InputSpec, ...] = (
                InputSpec("input_ids", (1, tokens), "int64", int(config.vocab_size)),
                InputSpec("attention_mask", (1, tokens), "int64", 2, 1),
            )
            self.preprocess = Preprocess()
        else:
            size = getattr(config, "image_size", 224)
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            self.names = (model.main_input_name,)
            self.inputs = (
                InputSpec(self.names[0], (1, int(getattr(config, "num_channels", 3)), int(height), int(width))),
            )
            self.preprocess = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), int(height))

    def restore_at(self, prefix: str) -> str:
        """Where hidden dimensions of the part `prefix` leave this module, '' where something else reads them."""
        return "project" if prefix == "model." and "logits" not in self.heads() else ""

    def heads(self) -> tuple[str, ...]:
        """Names of what the wrapped model gives: 'logits' where it has a head."""
        return (
            ("logits",)
            if type(self.model).__name__.partition("For")[1] or type(self.model).__name__.endswith("HeadModel")
            else ("last_hidden_state",)
        )

    def forward(self, *values: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(self.names, values, strict=False))
        if hasattr(self.model.config, "use_cache") and self.names[0] == "input_ids":
            given["use_cache"] = False
        out = self.model(**given)[0]
        if self.heads() == ("logits",):
            return out
        if self.pooling == "mean":
            weight = given["attention_mask"].to(out.dtype)[..., None]
            out = (out * weight).sum(1) / weight.sum(1).clamp(min=1)
        elif self.pooling == "cls":
            out = out[:, 0]
        out = self.project(out)
        return nn.functional.normalize(out, dim=-1) if self.normalize else out


def _foreign_parts(name: str, config: Any) -> bool:
    """Whether a class builds parts of itself by names that a config gives: it would look them up elsewhere."""
    fields = set(getattr(config, "__dataclass_fields__", ())) | set(getattr(config, "sub_configs", ()))
    return name.startswith("Timm") or bool(
        fields & {"backbone", "backbone_config", "use_timm_backbone", "timm_model_name"}
    )


def build(name: str) -> Callable[..., nn.Module]:
    """The factory of a transformers class; its arguments are the config's, with `pooling`, `normalize` and `tokens` (sequence length)."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"transformers:{name} needs the transformers package; pip install 'deploy-toolchain[transformers]'"
        ) from None
    found = getattr(transformers, name, None)
    cls: Any = found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None
    if cls is None or cls.config_class is None or _foreign_parts(name, cls.config_class):
        raise UserError(f"transformers has no model class {name!r}; give for example transformers:BertModel")

    def factory(pooling: str = "", normalize: bool = False, tokens: int = 0, **config: Any) -> nn.Module:
        if pooling not in ("", "mean", "cls"):
            raise ValueError(f"pooling is {pooling!r}; known are mean and cls")
        for key in [k for k in config if k in _IGNORED or k.startswith(_FOREIGN)]:
            config.pop(key)
        from huggingface_hub.errors import StrictDataclassError

        try:
            made = cls.config_class(**config)
        except (*_REFUSALS, StrictDataclassError) as error:
            raise ValueError(
                f"{name} refuses its config: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
        made._attn_implementation = "sdpa"
        longest = int(getattr(made, "max_position_embeddings", 0) or getattr(made, "n_positions", 0) or 128)
        if getattr(made, "model_type", "") in (
            "roberta",
            "xlm-roberta",
            "camembert",
        ):  # its positions begin behind the padding token's number
            longest -= int(getattr(made, "pad_token_id", None) or 0) + 1
        try:
            model = cls(made)
        except _REFUSALS as error:
            raise ValueError(
                f"{name} refuses its config: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
        return HubModel(model, pooling, normalize, min(tokens or 128, longest)).eval()

    return factory


def place_keys(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A file's keys as the wrapped model has them: under `model.`, with or without the base model's prefix; buffers that transformers no longer
    stores left out, tied tensors that the file has once filled in."""
    wanted = module.state_dict()
    if not isinstance(module, HubModel) or any(k in wanted for k in state):
        return dict(state)
    base = str(getattr(module.model, "base_model_prefix", ""))
    found: dict[str, Any] = {}
    for key, value in state.items():
        for name in (f"model.{key}", f"model.{base}.{key}", f"model.{key.removeprefix(base + '.')}"):
            if name in wanted:
                found[name] = value
                break
        else:
            if not key.endswith(
                ("position_ids", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
            ) and not key.startswith("cls."):
                found[key] = value
    tied: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        tied.setdefault(id(value), []).append(name)
    for names in tied.values():
        have = next((n for n in names if n in found), None)
        for name in names if have else ():
            found.setdefault(name, found[have or name])
    return found


def read_config(path: Path) -> tuple[str, dict[str, Any]] | None:
    """(`transformers:CLASS`, arguments) from the `config.json` beside weights, with the pooling that sentence-transformers wrote; None where it
    names no transformers class."""
    try:
        config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str) or not names[0].isidentifier():
        return None
    args = {k: v for k, v in config.items() if k != "architectures"}
    folder = path.parent
    try:
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        args["pooling"] = (
            "mean"
            if pooling.get("pooling_mode_mean_tokens")
            else "cls"
            if pooling.get("pooling_mode_cls_token")
            else ""
        )
        args["normalize"] = any(str(m.get("type", "")).endswith("Normalize") for m in modules)
        limit = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8")).get("max_seq_length")
        if isinstance(limit, int):
            args["tokens"] = limit
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    return f"transformers:{names[0]}", args
