"""Calibration and evaluation data in: an image folder, .npz/.npy, or `pkg.mod:function` (an iterable of batches)."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deploy.arch import Preprocess, attribute
from deploy.errors import UserError
from deploy.inputs import InputSpec

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"}
_FIRST = ("x", "images", "inputs", "input", "data")
_LABELS = ("y", "labels", "label", "targets")


@dataclass(frozen=True)
class Batch:
    """Model inputs in order, each [N, ...], and integer labels [N] where there are any."""

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])


def is_function(source: str) -> bool:
    """Whether a data source is named as `pkg.mod:function` rather than as a path."""
    return ":" in source and not Path(source).exists() and "/" not in source


def paths_of(source: str) -> dict[str, Path]:
    """The file or folder whose content decides what a source yields: for a function its module's file; none for `random`."""
    if not source or source == "random":
        return {}
    return code_of(source) if is_function(source) else {"data": Path(source)}


def code_of(name: str) -> dict[str, Path]:
    """The file of the module in `pkg.mod:attribute`, none for a built-in one. Raises UserError when it cannot be found."""
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"{name}: cannot import {module!r}; put its folder on PYTHONPATH")
    return {"code": Path(spec.origin)} if spec.origin and Path(spec.origin).is_file() else {}


def load(
    source: str,
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    limit: int,
    batch: int = 32,
    labels: bool = False,
    flag: str = "--calib",
    seed: int = 0,
) -> list[Batch]:
    """Read at most `limit` samples of `source` as batches that fit `specs`.

    uint8 images are divided by 255 and normalised by `preprocess`; floats are taken as they are. With `labels` they must be
    there. Raises UserError, one sentence, for anything unreadable, mis-shaped, non-finite or unlabelled.
    """
    if source == "random":
        rng = np.random.default_rng(seed)
        return [Batch(tuple(s.example(rng, n) for s in specs)) for n in _sizes(limit, batch)]
    if is_function(source):
        batches = list(_from_function(source, specs, preprocess, limit, flag))
    else:
        path = Path(source)
        if path.is_dir():
            batches = list(_from_folder(path, specs, preprocess, limit, batch, labels, flag, seed))
        elif path.suffix in (".npz", ".npy"):
            batches = list(_from_arrays(path, specs, preprocess, limit, batch, flag))
        elif not path.exists():
            raise UserError(f"{flag} {source} does not exist; give an image folder, .npz, .npy or pkg.mod:function")
        else:
            raise UserError(f"{flag} {source} is not an image folder, .npz, .npy or pkg.mod:function")
    if not batches or not sum(map(len, batches)):
        raise UserError(f"{flag} {source} yields no samples")
    for item in batches:
        _check(item, specs, source, flag, labels)
    return batches


def _sizes(total: int, batch: int) -> list[int]:
    return [min(batch, total - at) for at in range(0, total, batch)]


def _check(item: Batch, specs: Sequence[InputSpec], source: str, flag: str, labels: bool) -> None:
    if len(item.inputs) != len(specs):
        raise UserError(f"{flag} {source} gives {len(item.inputs)} inputs, the model takes {len(specs)}")
    for value, spec in zip(item.inputs, specs, strict=True):
        if tuple(value.shape[1:]) != tuple(spec.shape[1:]):
            raise UserError(
                f"{flag} {source} has samples of shape {'x'.join(map(str, value.shape[1:]))}, the model takes "
                f"{'x'.join(map(str, spec.shape[1:]))}; reshape them or give --input-shape"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{flag} {source} holds NaN or infinity; clean it")
    if item.labels is not None and (item.labels.ndim != 1 or item.labels.dtype.kind not in "iu"):
        raise UserError(
            f"{flag} {source} has labels of shape {item.labels.shape} and type {item.labels.dtype}; give one class index per sample"
        )
    if labels and item.labels is None:
        raise UserError(f"{flag} {source} has no labels; give class sub-folders or an array 'y' in the .npz")


def _fit(value: np.ndarray, spec: InputSpec, preprocess: Preprocess) -> np.ndarray:
    """Bring one array to [N, ...] of the spec: add a channel axis, NHWC -> NCHW, scale uint8."""
    want = tuple(spec.shape[1:])
    if value.ndim == len(want) and len(want) == 3 and want[0] == 1:
        value = value[:, None]
    if (
        len(want) == 3
        and value.ndim == 4
        and tuple(value.shape[1:]) != want
        and (value.shape[3], *value.shape[1:3]) == want
    ):
        value = value.transpose(0, 3, 1, 2)
    if spec.dtype != "float32":
        return value.astype(spec.dtype)
    if value.dtype == np.uint8:
        value = value.astype(np.float32) / 255
        if preprocess.mean and value.ndim == 4 and value.shape[1] == len(preprocess.mean):
            shape = (1, -1, 1, 1)
            value = (value - np.array(preprocess.mean, np.float32).reshape(shape)) / np.array(
                preprocess.std, np.float32
            ).reshape(shape)
    return np.ascontiguousarray(value, np.float32)


def _from_arrays(
    path: Path, specs: Sequence[InputSpec], preprocess: Preprocess, limit: int, batch: int, flag: str
) -> Iterator[Batch]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except FileNotFoundError:
        raise UserError(f"{flag} {path} does not exist; check the path") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{flag} {path} cannot be read as a NumPy file: {str(error).splitlines()[0][:100] if str(error) else 'damaged'}; save it again with np.savez"
        ) from None
    labels = next((arrays.pop(k) for k in _LABELS if k in arrays), None)
    if len(specs) > 1:
        missing = [s.name for s in specs if s.name not in arrays]
        if missing:
            raise UserError(f"{flag} {path} lacks the arrays {', '.join(missing)}; it must hold one per model input")
        chosen = [arrays[s.name] for s in specs]
    else:
        key = next((k for k in (specs[0].name, *_FIRST) if k in arrays), None) or (
            next(iter(arrays)) if len(arrays) == 1 else None
        )
        if key is None:
            raise UserError(f"{flag} {path} holds the arrays {', '.join(arrays) or 'none'}; name the samples 'x'")
        chosen = [arrays[key]]
    if any(a.dtype.kind not in "fiub" or a.ndim < 1 for a in chosen):
        raise UserError(
            f"{flag} {path} holds {chosen[0].dtype} values; they must be numbers with a leading sample axis"
        )
    count = min(limit, *(len(a) for a in chosen))
    if labels is not None and len(labels) < count:
        raise UserError(f"{flag} {path} has {len(labels)} labels for {len(chosen[0])} samples; give one per sample")
    for at in range(0, count, batch):
        stop = min(at + batch, count)
        values = tuple(_fit(a[at:stop], s, preprocess) for a, s in zip(chosen, specs, strict=True))
        yield Batch(values, None if labels is None else np.asarray(labels[at:stop]))


def _from_folder(
    path: Path,
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    limit: int,
    batch: int,
    labels: bool,
    flag: str,
    seed: int,
) -> Iterator[Batch]:
    from PIL import Image, UnidentifiedImageError

    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{flag} {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of images")
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise UserError(
            f"{flag} {path} is an image folder, but the model does not take one image; give an .npz with one array per input"
        )
    classes = sorted({p.relative_to(path).parts[0] for p in files if len(p.relative_to(path).parts) > 1})
    if len(files) > limit:
        pick = np.random.default_rng(seed).permutation(len(files))[:limit]
        files = [files[i] for i in sorted(pick)]
    _, channels, height, width = specs[0].shape
    for at in range(0, len(files), batch):
        rows = []
        for file in files[at : at + batch]:
            try:
                with Image.open(file) as opened:
                    rows.append(
                        _crop(opened.convert("L" if channels == 1 else "RGB"), height, width, preprocess.resize)
                    )
            except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
                raise UserError(
                    f"{flag}: the image {file} cannot be read ({str(error)[:80]}); remove or replace it"
                ) from None
        found = (
            [classes.index(f.relative_to(path).parts[0]) for f in files[at : at + batch]]
            if labels and classes
            else None
        )
        yield Batch((_fit(np.stack(rows), specs[0], preprocess),), None if found is None else np.array(found, np.int64))


def _crop(image: Any, height: int, width: int, resize: int) -> np.ndarray:
    """Short side to `resize`, centre crop to height x width; [H, W, C] uint8."""
    from PIL import Image

    short = max(resize, height, width) if resize else max(height, width)
    scale = short / min(image.size)
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _from_function(
    source: str, specs: Sequence[InputSpec], preprocess: Preprocess, limit: int, flag: str
) -> Iterator[Batch]:
    function = attribute(flag, source)
    left = limit
    for item in islice(function() if callable(function) else function, limit):
        row = list(item) if isinstance(item, (list, tuple)) else [item]
        arrays = [np.asarray(v) for v in row]
        if len(arrays) not in (len(specs), len(specs) + 1):
            raise UserError(
                f"{flag} {source} yields {len(arrays)} arrays per batch, the model takes {len(specs)} inputs (labels last)"
            )
        extra = arrays[len(specs)][:left] if len(arrays) > len(specs) else None
        yield Batch(
            tuple(_fit(a[:left], s, preprocess) for a, s in zip(arrays[: len(specs)], specs, strict=True)), extra
        )
        left -= len(arrays[0])
        if left <= 0:
            return


def top1(logits: np.ndarray) -> np.ndarray:
    """Class index of each row of [N, classes]."""
    return logits.reshape(len(logits), -1).argmax(1)
