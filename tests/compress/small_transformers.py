"""Small transformers of every family with perturbed random weights (no head, norm or bias is at its initial constant)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from compress.prune.prepare import prepare
from deploy.hub import build


def _perturb(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim == 1 else 0.08))
    return prepare(module).eval()


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return _perturb(make())


def _hub(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: _seeded(lambda: build(name)(**config))


def _timm(name: str, **args: Any) -> Callable[[], nn.Module]:
    return lambda: _seeded(lambda: timm.create_model(name, pretrained=False, num_classes=7, **args))


TEXT = {"vocab_size": 90, "max_position_embeddings": 40}
BERT = {
    **TEXT,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "tokens": 12,
}
LLAMA = {**TEXT, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 40, "tokens": 12}  # fmt: skip
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": _hub("BertModel", pooling="mean", normalize=True, **BERT),
    "bert-classifier": _hub("BertForSequenceClassification", num_labels=5, **BERT),
    "roberta": _hub("RobertaForSequenceClassification", num_labels=5, pad_token_id=1, **BERT),
    "distilbert": _hub(
        "DistilBertModel", dim=24, n_layers=2, n_heads=4, hidden_dim=40, tokens=12, pooling="mean", **TEXT
    ),
    "gpt2": _hub("GPT2LMHeadModel", vocab_size=90, n_positions=40, n_embd=24, n_layer=2, n_head=4, tokens=12),
    "llama": _hub("LlamaForCausalLM", tie_word_embeddings=True, **LLAMA),
    "llama-untied": _hub("LlamaForCausalLM", tie_word_embeddings=False, **LLAMA),
    "segformer": _hub(
        "SegformerForSemanticSegmentation",
        depths=[1, 2, 1, 1],
        hidden_sizes=[8, 12, 16, 24],
        num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=16,
        num_labels=5,
        image_size=32,
    ),
    "vit": _timm(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, init_values=0.5
    ),
    "deit-distilled": _timm(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
    ),
    "swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        patch_size=2,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 3),
    ),
}


def example(module: nn.Module, batch: int = 3) -> tuple[Tensor, ...]:
    """Inputs for one of these models: token numbers with some padding, or images of 32 x 32."""
    generator = torch.Generator().manual_seed(1)
    specs = getattr(module, "inputs", None)
    if specs and specs[0].dtype == "int64":
        ids = torch.randint(2, 90, (batch, 12), generator=generator)
        mask = torch.ones(batch, 12, dtype=torch.int64)
        mask[0, 9:] = 0
        return ids, mask
    return (torch.randn(batch, 3, 32, 32, generator=generator),)
