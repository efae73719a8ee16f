"""Float training of the detector and its score: CenterNet's losses, Adam, flips, crops and colours (CoDeNet, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compress.codenet.boxes import Scene
from compress.codenet.decode import STRIDE, Detections, decode
from compress.codenet.loss import detection_loss, targets
from compress.codenet.network import PREPROCESS
from compress.codenet.score import average_precision
from deploy.errors import UserError
from deploy.progress import track

Augment = Callable[[Scene, np.random.Generator], Scene]


@dataclass(frozen=True)
class TrainConfig:
    """epochs, batch and Adam's learning rate (one cycle, cosine); weight_decay on weights."""

    epochs: int = 12
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0


def normalise(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each -> float [N, 3, H, W] as the network takes it."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (PREPROCESS.mean, PREPROCESS.std))
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - mean) / std


def mirror(scene: Scene, rng: np.random.Generator) -> Scene:
    """Left to right, every second time."""
    if rng.random() < 0.5:
        return scene
    w = scene.image.shape[1]
    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] = w - scene.boxes[:, [2, 0]]
    return Scene(np.ascontiguousarray(scene.image[:, ::-1]), boxes, scene.labels, scene.hard)


def affine(scene: Scene, rng: np.random.Generator) -> Scene:
    """CenterNet's crop (scale 0.6 to 1.3, moved by up to a fifth), mirror and colours, through torchvision.transforms.v2."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    h, w = scene.image.shape[:2]
    steps = v2.Compose(
        [
            v2.RandomAffine(0, translate=(0.2, 0.2), scale=(0.77, 1.67), fill=127),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(min_size=2, labels_getter=lambda given: given[2]),
        ]
    )
    wanted = scene.wanted()
    with torch.random.fork_rng([]):
        torch.manual_seed(int(rng.integers(2**31)))
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(wanted.boxes), format="XYXY", canvas_size=(h, w))  # type: ignore[call-arg]
        image, boxes, labels = steps(
            tv_tensors.Image(torch.from_numpy(wanted.image).permute(2, 0, 1)), boxes, torch.from_numpy(wanted.labels)
        )
    return Scene(image.permute(1, 2, 0).numpy(), boxes.numpy().astype(np.float32), labels.numpy())


def train(
    net: nn.Module, scenes: Sequence[Scene], classes: int, config: TrainConfig, augment: Augment = mirror
) -> list[float]:
    """Train in place on scenes of one size; returns the mean loss of every epoch. Deterministic by seed and thread count.

    Raises UserError for fewer scenes than a batch.
    """
    if len(scenes) < config.batch:
        raise UserError(f"{len(scenes)} scenes are fewer than the batch of {config.batch}; lower it or give more")
    rng = np.random.default_rng(config.seed)
    steps = len(scenes) // config.batch
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=config.lr)  # fmt: skip
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps, pct_start=0.2)
    size = scenes[0].image.shape[0] // STRIDE
    history = []
    for epoch in range(config.epochs):
        net.train()
        total = 0.0
        order = rng.permutation(len(scenes))[: steps * config.batch].reshape(steps, config.batch)
        for pick in track(order, f"epoch {epoch + 1} of {config.epochs}"):
            batch = [augment(scenes[k], rng).wanted() for k in pick]
            want = targets([s.boxes for s in batch], [s.labels for s in batch], classes, size)
            optimizer.zero_grad()
            loss = detection_loss(net(normalise([s.image for s in batch])), want)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
            plan.step()
            total += loss.item()
        history.append(round(total / steps, 4))
    net.eval()
    return history


@torch.no_grad()
def detect(net: Callable[[Tensor], Tensor], scenes: Sequence[Scene], batch: int = 50) -> list[Detections]:
    """Detections of every scene."""
    found: list[Detections] = []
    for k in range(0, len(scenes), batch):
        found += [decode(row.numpy()) for row in net(normalise([s.image for s in scenes[k : k + batch]]))]
    return found


def score(net: Callable[[Tensor], Tensor], scenes: Sequence[Scene], classes: int) -> dict[str, float]:
    """{"AP", "AP50", "AP75"} of a network on scenes, one forward pass each (no flip test)."""
    return average_precision(scenes, detect(net, scenes), classes)
