"""Networks of the measurements that no package ships whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy.inputs import InputSpec


class Bert(nn.Module):
    """A BERT encoder (post-norm, GELU) with the parameter names of Hugging Face's BertModel, 6 layers of width 384: MiniLM-L6.

    Inputs: input_ids and attention_mask [N, 128] int64 (examples have no padding). Output: mean-pooled, normalised sentence vector [N, width].
    """

    inputs = (InputSpec("input_ids", (1, 128), "int64", 30522), InputSpec("attention_mask", (1, 128), "int64", 2, 1))

    def __init__(
        self,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        hidden: int = 1536,
        vocabulary: int = 30522,
        positions: int = 512,
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary, width),
                "position_embeddings": nn.Embedding(positions, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, 1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(width, heads, hidden) for _ in range(layers))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        e = self.embeddings
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        x = (
            e["word_embeddings"](input_ids)
            + e["position_embeddings"](places)
            + e["token_type_embeddings"](torch.zeros_like(input_ids))
        )
        x = e["LayerNorm"](x)
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        mask = attention_mask[:, :, None].to(x.dtype)
        pooled = (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return pooled / pooled.norm(dim=1, keepdim=True).clamp(min=1e-12)


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({n: nn.Linear(width, width) for n in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, 1e-12)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, width), "LayerNorm": nn.LayerNorm(width, 1e-12)})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.view(t.size(0), t.size(1), self.heads, -1).transpose(1, 2)

        inner = self.attention["self"]
        q, k, v = split(inner["query"](x)), split(inner["key"](x)), split(inner["value"](x))
        weights = torch.softmax(q @ k.transpose(-1, -2) / (q.size(-1) ** 0.5) + bias, -1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](mixed) + x)
        y = torch.nn.functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](y) + x)


def minilm() -> Bert:
    """Factory for --arch bench.models:minilm."""
    return Bert()
