"""A plain convolutional network for 28x28 grey images: the demonstration model of this project."""

from __future__ import annotations

from torch import Tensor, nn

from deploy.inputs import InputSpec


def _block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class FashionCNN(nn.Module):
    """Six ConvBN-ReLU layers, two max pools, global average pool, one linear layer.

    Input: float [N, 1, 28, 28], pixels divided by 255. Output: [N, 10] logits.
    """

    inputs = (InputSpec("input", (1, 1, 28, 28)),)

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            _block(1, w),
            _block(w, w),
            nn.MaxPool2d(2),
            _block(w, 2 * w),
            _block(2 * w, 2 * w),
            nn.MaxPool2d(2),
            _block(2 * w, 4 * w),
            _block(4 * w, 4 * w),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def fashion_cnn(width: int = 32, classes: int = 10) -> FashionCNN:
    """Factory behind `--arch deploy:fashion_cnn`."""
    return FashionCNN(width, classes)
