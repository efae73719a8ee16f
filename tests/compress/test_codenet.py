"""The detector: sizes of the paper's configurations, targets, decoding, data, average precision, and that training works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.codenet import canvas, loss, voc
from compress.codenet.boxes import Scene
from compress.codenet.decode import decode
from compress.codenet.network import CONFIGS, OPERATORS, codenet
from compress.codenet.score import average_precision
from compress.codenet.train import TrainConfig, affine, detect, mirror, score, train
from compress.quantize.plan import count_macs
from deploy.errors import UserError
from tests.conftest import FASHION


def items() -> tuple[np.ndarray, np.ndarray]:
    file = np.load(FASHION / "test1000.npz")
    return file["x"].reshape(-1, 28, 28), file["y"]


def test_configurations_have_the_papers_sizes() -> None:
    """Parameters, MiB at 4 bits and 10^9 MACs: CoDeNet's table 3 (0.76 and 2.90; 0.29, 0.29, 1.14, 3.54, 3.58)."""
    sizes = {"a": 0.757, "b": 0.757, "c": 0.757, "d": 2.900, "e": 2.900}
    macs = {"a": 0.280, "b": 0.288, "c": 1.119, "d": 3.507, "e": 3.539}
    for name in "abcde":
        net = codenet(name).eval()
        count = sum(p.numel() for p in net.parameters())
        assert round(count / 2 / 2**20, 3) == sizes[name]
        if name in "ac":
            assert count == 1_588_031
        side = net.config.resolution
        got = sum(count_macs(net, (torch.zeros(1, 3, side, side),)).values()) / 1e9
        assert round(got, 3) == macs[name]


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_every_operator_runs_and_learns(operator: str) -> None:
    net = codenet("small", 10, operator, 64)
    out = net(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 14, 16, 16)
    out.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="not one of a, b"):
        codenet("z")
    with pytest.raises(ValueError, match="not one of conv3"):
        codenet("a", operator="wave")
    with pytest.raises(ValueError, match="multiple of 32"):
        codenet("a", resolution=100)


def test_targets_decode_to_the_boxes() -> None:
    """What the targets say, decoded, is what was labelled, to a thousandth of a pixel."""
    rng = np.random.default_rng(0)
    scenes = canvas.generate(*items(), 20, 3, 128)
    want = loss.targets([s.boxes for s in scenes], [s.labels for s in scenes], 10, 32)
    for k, scene in enumerate(scenes):
        logits = (
            torch.logit(want.heat[k].clamp(1e-6, 1 - 1e-6))
            + torch.from_numpy(rng.normal(0, 1e-3, (10, 32, 32))).float()
        )
        output = torch.cat([logits, want.boxes[k]]).numpy()
        found = decode(output, len(scene.boxes))
        order = np.lexsort(scene.boxes.T)
        mine = np.lexsort(found.boxes.T.round(2))
        assert np.allclose(found.boxes[mine], scene.boxes[order], atol=1e-3)
        assert np.array_equal(found.labels[mine], scene.labels[order])


def test_radius_keeps_the_overlap() -> None:
    """A corner moved by the radius, in the worst of the three ways, leaves an IoU of at least 0.7 (Law and Deng 2018)."""
    for h, w in ((10.0, 10.0), (4.0, 30.0), (50.0, 21.0)):
        r = loss.radius(h, w)
        inside = (h - 2 * r) * (w - 2 * r) / (h * w)
        outside = h * w / ((h + 2 * r) * (w + 2 * r))
        shared = (h - r) * (w - r)
        both = shared / (2 * h * w - shared)
        assert min(inside, outside, both) >= 0.7 - 1e-9
        assert min(inside, outside, both) < 0.75


def test_average_precision_of_known_detections() -> None:
    scenes = canvas.generate(*items(), 10, 5, 128)
    perfect = [decode(_output(s), len(s.boxes)) for s in scenes]
    assert average_precision(scenes, perfect, 10)["AP"] > 99
    moved = [type(p)(p.boxes + 6, p.scores, p.labels) for p in perfect]
    worse = average_precision(scenes, moved, 10)
    assert worse["AP"] < worse["AP50"] < 100
    nothing = [type(p)(p.boxes[:0], p.scores[:0], p.labels[:0]) for p in perfect]
    assert average_precision(scenes, nothing, 10)["AP"] == 0
    hard = [Scene(s.image, s.boxes, s.labels, np.ones(len(s.boxes), bool)) for s in scenes]
    with_hard = [Scene(a.image, np.concatenate([a.boxes, [[0, 0, 9, 9]]]), np.append(a.labels, 0), np.append(np.zeros(len(a.boxes), bool), True)) for a in hard]  # fmt: skip
    assert average_precision(with_hard, perfect, 10)["AP"] > 99  # a missed hard box is no error


def _output(scene: Scene) -> np.ndarray:
    want = loss.targets([scene.boxes], [scene.labels], 10, 32)
    return torch.cat([torch.logit(want.heat[0].clamp(1e-6, 1 - 1e-6)), want.boxes[0]]).numpy()


def test_generated_boxes_are_exact_and_repeatable() -> None:
    x, y = items()
    a, b = canvas.generate(x, y, 5, 0), canvas.generate(x, y, 8, 0)
    for one, two in zip(a, b, strict=False):
        assert np.array_equal(one.image, two.image) and np.array_equal(one.boxes, two.boxes)
    for scene in b:
        assert (scene.boxes >= 0).all() and (scene.boxes <= 128).all()
        assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 4).all()


@pytest.mark.parametrize("step", [mirror, affine])
def test_augmentation_moves_boxes_with_the_image(step: object) -> None:
    """A white square on black: after any augmentation its box still encloses what is white."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[30:60, 20:44] = 255
    scene = Scene(image, np.array([[20, 30, 44, 60]], np.float32), np.array([0]))
    for seed in range(20):
        made = step(scene, np.random.default_rng(seed))  # type: ignore[operator]
        bright = made.image.min(2) > 0.9 * made.image.max()  # white stays the brightest, whatever the colours do
        if not len(made.boxes) or bright.sum() < 50:
            continue
        ys, xs = np.nonzero(bright)
        assert np.abs(made.boxes[0] - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() <= 2.0


def write_voc(folder: Path, scenes: list[Scene]) -> None:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for k, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{k:06d}.png")
        rows = "".join(
            f"<object><name>{voc.VOC[c]}</name><difficult>{int(k == 1)}</difficult><bndbox><xmin>{int(b[0]) + 1}</xmin><ymin>{int(b[1]) + 1}"
            f"</ymin><xmax>{int(b[2])}</xmax><ymax>{int(b[3])}</ymax></bndbox></object>"
            for b, c in zip(scene.boxes, scene.labels, strict=True)
        )
        (folder / "Annotations" / f"{k:06d}.xml").write_text(
            f"<annotation><filename>{k:06d}.png</filename>{rows}</annotation>"
        )
    (folder / "ImageSets" / "Main" / "train.txt").write_text("000000\n000002\n")


def test_voc_folders(tmp_path: Path) -> None:
    scenes = canvas.generate(*items(), 3, 0)
    write_voc(tmp_path / "v", scenes)
    read = voc.load(tmp_path / "v")
    for a, b in zip(scenes, read, strict=True):
        assert (
            np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels)
        )
    assert read[1].hard is not None and read[1].hard.all() and len(read[1].wanted().boxes) == 0
    assert len(voc.load(tmp_path / "v", "train")) == 2
    small = voc.resize(read[0], 64)
    assert small.image.shape == (64, 64, 3) and np.allclose(small.boxes, read[0].boxes / 2)
    cuts = voc.tiles(read[0], 64, 64, least=1.0)
    assert len(cuts) == 4 and all((c.boxes >= 0).all() and (c.boxes <= 64).all() for c in cuts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "no XML file"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><annotation/>", "declares entities"),
        ("<annotation><filename>../../etc/passwd</filename></annotation>", "no image"),
        ("<annotation><filename>0.png</filename><object><name>dragon</name></object></annotation>", "'dragon' is not one of"),
        ("<annotation><filename>0.png</filename><object><name>dog</name></object></annotation>", "no number xmin"),
        ("<annotation><filename>0.png</filename><object><name>dog</name><bndbox><xmin>nan</xmin></bndbox></object></annotation>", "xmin is nan"),
    ],
)  # fmt: skip
def test_bad_annotations_get_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        voc.load(tmp_path)
    with pytest.raises(UserError, match="no annotations"):
        voc.load(tmp_path / "nothing")


def test_training_learns_to_detect() -> None:
    """A few steps on a handful of scenes: the boxes of these scenes are found, with distances other than 1."""
    torch.manual_seed(0)
    scenes = canvas.generate(*items(), 16, 0, 64)
    net = codenet("small", 10, resolution=64)
    history = train(net, scenes, 10, TrainConfig(epochs=40, batch=8, lr=4e-3), augment=lambda s, _: s)
    assert history[-1] < history[0] / 5
    assert score(net, scenes, 10)["AP50"] > 60
    assert len(detect(net, scenes)) == 16
    assert CONFIGS["small"].head == 64


@pytest.mark.parametrize("args", [{"resolution": -32}, {"resolution": 64.0}, {"classes": 0}, {"classes": "abc"}])
def test_arguments_that_are_no_numbers(args: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        codenet("small", **args)  # type: ignore[arg-type]


def test_a_split_names_files_only(tmp_path: Path) -> None:
    write_voc(tmp_path / "v", canvas.generate(*items(), 1, 0))
    listing = tmp_path / "v" / "ImageSets" / "Main" / "train.txt"
    for text, message in (("../../x\n", "no name of a file"), ("000009\n", "add the file")):
        listing.write_text(text)
        with pytest.raises(UserError, match=message):
            voc.load(tmp_path / "v", "train")
    listing.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError):
        voc.load(tmp_path / "v", "train")


def test_sizes_below_zero_are_empty_boxes_and_empty_scenes_score_nothing() -> None:
    output = np.zeros((5, 8, 8), np.float32)
    output[0, 3, 3], output[1:3] = 5.0, -3.0
    (box,) = decode(output, 1).boxes
    assert box[0] == box[2] and box[1] == box[3]
    empty = Scene(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert average_precision([empty], [decode(output, 1)], 1)["AP"] == 0
    with pytest.raises(UserError, match="fewer than the batch"):
        train(codenet("small", 10), [empty], 10, TrainConfig())
