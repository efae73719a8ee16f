"""Embedding rows of tokens that the data never has: they go, and such tokens share one row, the mean of those that went."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import replace_module
from compress.prune.context import Inputs
from compress.prune.structure import Structure
from deploy.errors import UserError

SPECIAL = 1000  # low numbers, where tokenizers keep special tokens and single characters; they stay


class FewerRows(nn.Module):
    """An embedding with a table from token numbers to the rows that are left; all others have the last row. index: [vocabulary]."""

    def __init__(self, embedding: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        whole = embedding.weight.detach()
        gone = torch.ones(len(whole), dtype=torch.bool)
        gone[rows] = False
        other = whole[gone].mean(0) if bool(gone.any()) else whole[0]
        self.table = nn.Embedding.from_pretrained(torch.cat([whole[rows], other[None]]), freeze=False)
        index = torch.full((len(whole),), len(rows), dtype=torch.int32)
        index[rows] = torch.arange(len(rows), dtype=torch.int32)
        self.register_buffer("index", index)

    def forward(self, tokens: Tensor) -> Tensor:
        index: Any = self.index
        out: Tensor = self.table(index[tokens].long())
        return out


def rows_of_table(structure: Structure, module: nn.Module) -> int:
    """Rows of the token embedding. Raises UserError for models whose rows cannot go."""
    if not structure.vocabulary:
        raise UserError(
            f"--prune-vocabulary takes encoders of text (BERT, RoBERTa, DistilBERT); this is a {structure.family}"
        )
    embedding: Any = module.get_submodule(structure.vocabulary)
    return int(embedding.num_embeddings)


def seen(structure: Structure, module: nn.Module, batches: Sequence[Inputs]) -> Tensor:
    """Sorted token numbers that occur in the first input of the batches, with the special ones.

    Raises UserError for models whose rows cannot go: there is no token embedding, or a language head gives them out.
    """
    special = torch.arange(min(SPECIAL, rows_of_table(structure, module)))
    return torch.cat([special, *(b[0].reshape(-1).long() for b in batches)]).unique()


def shrink(module: nn.Module, name: str, rows: Tensor) -> nn.Module:
    """A copy of `module` whose embedding `name` keeps the given rows. Raises UserError where another part shares its weights."""
    module = copy.deepcopy(module)
    embedding: Any = module.get_submodule(name)
    owners = [n for n, p in module.named_parameters(remove_duplicate=False) if p is embedding.weight]
    if len(owners) > 1:
        raise UserError(
            f"--prune-vocabulary: {owners[1]} shares the rows of {name}, so the outputs would lose classes; leave it out"
        )
    replace_module(module, name, FewerRows(embedding, rows).train(module.training))
    return module
