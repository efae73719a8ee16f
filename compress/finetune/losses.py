"""What fine-tuning minimises and what it reports; both can be replaced by `pkg.mod:function`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from deploy.data import top1

Outputs = Sequence[Tensor]
Loss = Callable[[Outputs, Outputs, Tensor | None], Tensor]
Metric = Callable[[np.ndarray, np.ndarray], float]


def distill(student: Outputs, teacher: Outputs, temperature: float = 2.0) -> Tensor:
    """Knowledge distillation over all outputs (Hinton et al. 2015, section 2): class scores [N, C] by the divergence of their
    softened softmax, in units of T^2; other shapes by the squared error relative to the teacher's variance."""
    total = student[0].new_zeros(())
    for a, b in zip(student, teacher, strict=True):
        if not b.dtype.is_floating_point:
            continue
        if b.ndim == 2 and b.shape[1] > 1:
            soft = F.log_softmax(b / temperature, 1)
            total = (
                total
                + F.kl_div(F.log_softmax(a / temperature, 1), soft, reduction="batchmean", log_target=True)
                * temperature**2
            )
        else:
            total = total + (a - b).square().mean() / b.var().clamp(min=1e-8)
    return total


def is_embedding(out: Tensor) -> bool:
    """Whether outputs are unit vectors [N, D], which are compared as vectors and not as class scores."""
    return out.ndim == 2 and bool(((out.norm(dim=1) - 1).abs() < 1e-3).all())


def make_loss(temperature: float, label_weight: float) -> Loss:
    """(1 - label_weight) * distillation + label_weight * cross entropy with the labels, where there are any."""

    def loss(student: Outputs, teacher: Outputs, labels: Tensor | None) -> Tensor:
        value = distill(student, teacher, temperature)
        if labels is None or not label_weight:
            return value
        return (1 - label_weight) * value + label_weight * F.cross_entropy(student[0], labels)

    return loss


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in per cent; outputs [N, classes]. With the teacher's classes for labels it is the agreement with it."""
    return float((top1(outputs) == labels).mean() * 100)
