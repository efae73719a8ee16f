"""Detection data in Pascal VOC's layout: one XML file per image, read without external entities; and cutting large images up.

A folder holds `Annotations/NAME.xml`, `JPEGImages/` and, where given, `ImageSets/Main/SPLIT.txt`; or XML files beside images.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from compress.codenet.boxes import Scene
from deploy.errors import UserError

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def annotation_files(folder: Path, split: str = "") -> list[Path]:
    """The XML files of a folder, of one split where named. Raises UserError where there are none."""
    home = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    if split:
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise UserError(f"{listing} is missing; give a split that {listing.parent} has")
        names = [line.split()[0] for line in listing.read_text("utf-8", "replace").splitlines() if line.strip()]
        outside = next((n for n in names if Path(n).name != n), "")
        if outside:
            raise UserError(f"{listing} names {outside!r}, which is no name of a file; correct the line")
        files = [home / f"{name}.xml" for name in names]
    else:
        files = sorted(home.glob("*.xml"))
    if not files:
        raise UserError(f"{folder} has no annotations; it wants Annotations/*.xml, or *.xml beside the images")
    return files


def _image(xml: Path, named: str) -> Path:
    stems = [named, *(xml.stem + s for s in (".jpg", ".png", ".jpeg", ".tif"))]
    homes = [xml.parent, xml.parent.parent / "JPEGImages"]
    for home in homes:
        for stem in stems:
            # a name from inside a file never leaves its folder
            if stem and Path(stem).name == stem and (home / stem).is_file():
                return home / stem
    raise UserError(f"{xml}: there is no image {named or xml.stem!r} beside it or in JPEGImages")


def _number(box: ElementTree.Element | None, key: str, xml: Path) -> float:
    text = box.findtext(key) if box is not None else None
    try:
        value = float(text or "")
    except ValueError:
        raise UserError(f"{xml}: an object's bndbox has no number {key}; correct the file") from None
    if not np.isfinite(value):
        raise UserError(f"{xml}: {key} is {value}; correct the file")
    return value


def read(xml: Path, classes: Sequence[str] = VOC) -> Scene:
    """One annotated image; boxes are clipped to it, VOC's 1-based inclusive corners become x0 - 1 .. x1.

    Raises UserError, one sentence, for an unreadable file, image, box or a class that is not in `classes`.
    """
    try:
        text = xml.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{xml} cannot be read ({error.strerror}); add the file or take its name out of the split"
        ) from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{xml} declares entities, which no annotation needs; remove the declaration")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{xml} is no XML file ({error}); correct it") from None
    path = _image(xml, Path(root.findtext("filename") or "").name)
    try:
        image = np.array(Image.open(path).convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise UserError(f"{path} is no readable image; replace it") from None
    h, w = image.shape[:2]
    boxes, labels, hard = [], [], []
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if name not in classes:
            raise UserError(f"{xml}: class {name!r} is not one of {', '.join(classes)}; give its name with the others")
        corner = item.find("bndbox")
        x0, y0, x1, y1 = (_number(corner, k, xml) for k in ("xmin", "ymin", "xmax", "ymax"))
        box = (max(0.0, x0 - 1), max(0.0, y0 - 1), min(float(w), x1), min(float(h), y1))
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        boxes.append(box)
        labels.append(list(classes).index(name))
        hard.append((item.findtext("difficult") or "0").strip() == "1")
    return Scene(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(hard, bool))


def load(folder: Path, split: str = "", classes: Sequence[str] = VOC) -> list[Scene]:
    """Every annotated image of a folder (of one split)."""
    return [read(xml, classes) for xml in annotation_files(folder, split)]


def resize(scene: Scene, size: int) -> Scene:
    """The whole image on size x size pixels, boxes with it (the aspect changes, as in CenterNet's fixed-size testing)."""
    h, w = scene.image.shape[:2]
    image = np.array(Image.fromarray(scene.image).resize((size, size), Image.Resampling.BILINEAR))
    factor = np.array([size / w, size / h, size / w, size / h], np.float32)
    return Scene(image, scene.boxes * factor, scene.labels, scene.hard)


def tiles(scene: Scene, side: int, step: int, least: float = 0.5) -> list[Scene]:
    """Square cuts of `side` pixels every `step`, with the boxes of which at least a share `least` lies inside, clipped."""
    h, w = scene.image.shape[:2]
    found = []
    for y in range(0, h - side + 1, step):
        for x in range(0, w - side + 1, step):
            moved = scene.boxes - np.array([x, y, x, y], np.float32)
            inside = moved.clip(0, side)
            area = (moved[:, 2:] - moved[:, :2]).prod(1)
            seen = (inside[:, 2:] - inside[:, :2]).prod(1)
            keep = (seen > 0) & (seen >= least * area)
            hard = None if scene.hard is None else scene.hard[keep]
            found.append(Scene(scene.image[y : y + side, x : x + side], inside[keep], scene.labels[keep], hard))
    return found
