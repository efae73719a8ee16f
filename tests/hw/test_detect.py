"""`deploy detect`: the trained example detector on its images, by ONNX Runtime and by the integers of the hardware."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deploy.cli import main as deploy

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "detection"
NAMES = "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,boot"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detector")
    weights, calib = EXAMPLE / "codenet_small.safetensors", EXAMPLE / "calib.npz"
    assert deploy(["compress", str(weights), "--bits", "4", "--calib", str(calib), "-o", str(root / "c"), "-q"]) == 0
    assert deploy(["export", str(root / "c"), "-o", str(root / "e"), "-q"]) == 0
    return root / "e"


def boxes(folder: Path) -> dict[str, list[dict[str, object]]]:
    rows = json.loads((folder / "detections.json").read_text())["images"]
    return {name: row["boxes"] for name, row in rows.items()}


def test_both_engines_find_the_same(exported: Path, tmp_path: Path) -> None:
    for engine in ("onnxruntime", "integer"):
        argv = ["detect", str(exported), "--images", str(EXAMPLE / "images"), "--names", NAMES, "--engine", engine]
        assert deploy([*argv, "-o", str(tmp_path / engine), "-q"]) == 0
    a, b = boxes(tmp_path / "onnxruntime"), boxes(tmp_path / "integer")
    assert len(a) == 6 and sum(map(len, a.values())) >= 12
    for name in a:
        assert [r["name"] for r in a[name]] == [r["name"] for r in b[name]]
        for one, two in zip(a[name], b[name], strict=True):
            assert np.abs(np.subtract(one["box"], two["box"])).max() <= 1.0
    drawn = sorted((tmp_path / "integer" / "drawn").glob("*.png"))
    assert len(drawn) == 6
    assert Image.open(drawn[0]).width == 384
    assert deploy(["report", str(tmp_path), "-o", str(tmp_path / "r"), "-q"]) == 0
    assert (tmp_path / "r" / "report.html").read_text().count("data:image/png;base64,") == 12


def test_boxes_are_in_the_images_own_pixels(exported: Path, tmp_path: Path) -> None:
    """The same scene at three times the size gives the same boxes, three times as large."""
    small = Image.open(EXAMPLE / "images" / "1.png")
    small.resize((384, 384), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    small.save(tmp_path / "small.png")
    argv = ["detect", str(exported), "--least", "0.35", "-q", "--images"]
    assert deploy([*argv, str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    found = boxes(tmp_path / "out")
    best = [np.array(found[n][0]["box"]) for n in ("large.png", "small.png")]
    assert np.abs(best[0] - 3 * best[1]).max() <= 12


def test_frames_of_a_video(exported: Path, tmp_path: Path) -> None:
    """What a camera sends, from a video file: every frame, at most --limit, the boxes of the images that it shows."""
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MPNG"), 5, (128, 128))
    for name in ("0", "1", "2"):
        image = Image.open(EXAMPLE / "images" / f"{name}.png").convert("RGB")
        writer.write(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    writer.release()
    argv = ["detect", str(exported), "--camera", str(tmp_path / "film.avi"), "-q"]
    assert deploy([*argv, "-o", str(tmp_path / "film")]) == 0
    assert deploy([*argv, "--limit", "2", "-o", str(tmp_path / "two")]) == 0
    images = ["detect", str(exported), "--images", str(EXAMPLE / "images"), "-q", "-o", str(tmp_path / "images")]
    assert deploy(images) == 0
    film, still = boxes(tmp_path / "film"), boxes(tmp_path / "images")
    assert list(film) == ["frame-00000", "frame-00001", "frame-00002"] and len(boxes(tmp_path / "two")) == 2
    assert [film[f"frame-0000{k}"] for k in range(3)] == [still[f"{k}.png"] for k in range(3)]  # the video has no loss
    assert film["frame-00001"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["detect"], "MODEL is missing"),
        (["detect", "{e}"], "--images is missing"),
        (["detect", "{e}", "--images", "{i}", "--camera", "0"], "exclude each other"),
        (["detect", "{e}", "--camera", "{t}/none.avi"], "gives no frame"),
        (["detect", "{e}", "--images", "{t}"], "holds no images"),
        (["detect", "{t}", "--images", "{i}"], "is no export folder"),
        (["detect", "{e}", "--images", "{t}/broken.png"], "cannot be read"),
    ],
)
def test_bad_input(
    exported: Path, tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "{t}/broken.png" in argv:
        (tmp_path / "broken.png").write_bytes(b"no image")
    places = {"e": exported, "t": tmp_path, "i": EXAMPLE / "images"}
    given = [a.format(**places) for a in argv]
    assert deploy([*given, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_detector_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fashion = EXAMPLE.parent / "fashion"
    assert deploy(["export", str(fashion / "fashion_cnn.safetensors"), "-o", str(tmp_path / "e"), "-q"]) == 0
    assert deploy(["detect", str(tmp_path / "e"), "--images", str(EXAMPLE / "images"), "-o", str(tmp_path / "d")]) == 2
    assert "square colour image" in capsys.readouterr().err


def test_unusual_images(exported: Path, tmp_path: Path) -> None:
    """Equal stems, thin, grey, transparent and 16-bit images; what an earlier run drew is no input."""
    home = tmp_path / "photos"
    home.mkdir()
    scene = Image.open(EXAMPLE / "images" / "1.png")
    scene.save(home / "a.png")
    scene.save(home / "a.bmp")
    scene.convert("RGBA").save(home / "transparent.png")
    grey = np.asarray(scene.convert("L"), np.uint16)
    Image.fromarray(grey.astype(np.uint8)).save(home / "grey8.png")
    Image.fromarray(grey * 257).save(home / "grey16.png")
    Image.fromarray(np.zeros((3000, 2), np.uint8)).save(home / "thin.png")
    argv = ["detect", str(exported), "--images", str(home), "-o", str(home / "out"), "--least", "0", "-q"]
    for _ in range(2):
        assert deploy(argv) == 0
    found = boxes(home / "out")
    assert len(found) == 6 and len(list((home / "out" / "drawn").glob("*.png"))) == 6
    assert found["a.png"] == found["a.bmp"] == found["transparent.png"]
    assert found["grey8.png"] == found["grey16.png"]
    assert all(b["box"][2] >= b["box"][0] for b in found["thin.png"])  # type: ignore[index]
