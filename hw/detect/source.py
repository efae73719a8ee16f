"""Where the images come from: files, or the frames of a camera or a video."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from deploy.data import IMAGE_SUFFIXES
from deploy.errors import UserError
from deploy.progress import track
from hw.detect.config import DetectConfig


def files_of(source: Path, limit: int, output: Path) -> list[Path]:
    """The images to look at, without those that an earlier run drew. Raises UserError where there are none."""
    if source.is_file():
        return [source]
    own = output.resolve()
    found = sorted(
        p
        for p in (source.rglob("*") if source.is_dir() else ())
        if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and not p.resolve().is_relative_to(own)
    )
    if not found:
        raise UserError(
            f"--images {source} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give an image or a folder"
        )
    return found[:limit]


def read(path: Path) -> Image.Image:
    """An image in RGB. Raises UserError where it is none."""
    try:
        with Image.open(path) as opened:
            if opened.mode in ("I;16", "I;16B", "I", "F"):  # 16 bits, or floats: PIL would cut them off at 255
                values = np.asarray(opened, np.float32)
                top = max(255.0, 65535.0 if values.max() > 255 else 255.0)
                opened = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
            return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {path} cannot be read ({str(error)[:80]}); remove or replace it") from None


def frames(camera: str, limit: int) -> Iterator[tuple[str, Image.Image]]:
    """(name, frame in RGB) of a camera by its number, or of a video, through OpenCV. Raises UserError where there are none."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        raise UserError("--camera needs OpenCV; pip install 'deploy-toolchain[camera]'") from None
    cv2.utils.logging.setLogLevel(0)
    capture = cv2.VideoCapture(int(camera) if camera.isdecimal() else camera)
    try:
        for k in range(limit):
            good, frame = capture.read()
            if not good and k == 0:
                raise UserError(
                    f"--camera {camera} gives no frame; give the number of a camera that is there, or a video file"
                )
            if not good:
                return
            yield f"frame-{k:05d}", Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        capture.release()


def pictures(config: DetectConfig) -> Iterator[tuple[str, Image.Image]]:
    """(name, image) of everything to look at. Raises UserError."""
    if config.camera:
        yield from frames(config.camera, config.limit)
        return
    folder = Path(config.images)
    for path in track(files_of(folder, config.limit, Path(config.output)), "detecting"):
        yield str(path.relative_to(folder)) if path != folder else path.name, read(path)
