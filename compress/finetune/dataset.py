"""Training samples: arrays in memory, augmented by rules that depend on seed, epoch and sample only, so that any number of
processes sees the same samples in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deploy.data import Batch
from deploy.errors import UserError

Augment = Callable[[Tensor, Tensor], Tensor]
SHIFT = 0.08  # of the image's side, at most


def flip(x: Tensor, random: Tensor) -> Tensor:
    """Mirror half of the images; x [N, C, H, W], random [N, 4] in [0, 1)."""
    return torch.where((random[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)


def shift(x: Tensor, random: Tensor) -> Tensor:
    """Move every image by up to 8 % of its sides, its own least value at the border."""
    n, _, h, w = x.shape
    most_y, most_x = max(1, round(h * SHIFT)), max(1, round(w * SHIFT))
    low = x.amin((1, 2, 3), keepdim=True)
    padded = F.pad(x - low, (most_x, most_x, most_y, most_y)) + low
    rows = (random[:, 1] * (2 * most_y + 1)).long()[:, None] + torch.arange(h)
    cols = (random[:, 2] * (2 * most_x + 1)).long()[:, None] + torch.arange(w)
    at = torch.arange(n)[:, None, None]
    return padded[at, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


AUGMENT: dict[str, tuple[Augment, ...]] = {"none": (), "flip": (flip,), "shift": (shift,), "flip+shift": (flip, shift)}


@dataclass(frozen=True)
class Samples:
    """inputs: one array [N, ...] per model input; labels [N] or None."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Samples:
        arrays = [np.concatenate([b.inputs[i] for b in batches]) for i in range(len(batches[0].inputs))]
        rows = [b.labels for b in batches if b.labels is not None]
        labels = torch.from_numpy(np.concatenate(rows)).long() if len(rows) == len(batches) else None
        return cls(tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays), labels)

    def take(self, index: Tensor) -> Samples:
        return Samples(tuple(x[index] for x in self.inputs), None if self.labels is None else self.labels[index])


def split(samples: Samples, held_out: float, seed: int) -> tuple[Samples, Samples]:
    """(training samples, held-out samples): a random share, at least one sample, at most 2,000."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    count = min(2000, max(1, round(len(samples) * held_out)))
    return samples.take(order[count:]), samples.take(order[:count])


class Order:
    """Batches of sample numbers of one epoch, the last short one left out; `start` skips the first ones (resuming).

    What DataLoader wants of a batch sampler: `batch_size`, `drop_last`, `sampler`.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < batch:
            raise UserError(
                f"--train gives {count} samples to train on, fewer than --batch {batch}; lower --batch or give more"
            )
        self.count, self.batch_size, self.seed = count, batch, seed
        self.drop_last, self.sampler = True, range(count)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.count, generator=generator).tolist()
        for k in range(self.start, len(self)):
            yield order[k * self.batch_size : (k + 1) * self.batch_size]


class Augmented(torch.utils.data.Dataset[list[Tensor]]):
    """The samples of an epoch, a whole batch at a time: [inputs..., labels (if any)]."""

    def __init__(self, samples: Samples, steps: Sequence[Augment], seed: int, order: Order) -> None:
        if steps and (len(samples.inputs) != 1 or samples.inputs[0].ndim != 4):
            raise UserError(
                "--augment takes models of one image; use --augment none, or augment in a pkg.mod:function source"
            )
        self.samples, self.steps, self.seed, self.order = samples, steps, seed, order
        self._random = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.samples)

    def _numbers(self) -> Tensor:
        """[N, 4] random numbers of this epoch, the same in every process."""
        epoch = self.order.epoch
        if self._random[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 7_368_787 + epoch) % 2**63)
            self._random = (epoch, torch.rand(len(self.samples), 4, generator=generator))
        return self._random[1]

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        at = torch.tensor(index)
        batch = self.samples.take(at)
        inputs = list(batch.inputs)
        for step in self.steps:
            inputs[0] = step(inputs[0], self._numbers()[at])
        return inputs if batch.labels is None else [*inputs, batch.labels]

    def __getitem__(self, index: int) -> list[Tensor]:
        return [v[0] for v in self.__getitems__([index])]
