"""The main job on the trained demonstration model: accuracy, sizes, resume, the page in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CALIB, MODEL, TEST, deploy


def _manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "manifest.json").read_text())


def test_accuracy_and_size_at_every_stage(fashion_run: Path) -> None:
    summary = _manifest(fashion_run / "compress")["summary"]
    assert summary["accuracy"]["float_percent"] >= 92.5  # type: ignore[index]
    assert summary["accuracy"]["compressed_percent"] >= summary["accuracy"]["float_percent"] - 0.6  # type: ignore[index]
    assert summary["float_bytes"] / summary["bytes"] > 7  # type: ignore[index, operator]
    candidates = _manifest(fashion_run / "profile")["summary"]["candidates"]  # type: ignore[index]
    figures = {n: r["accuracy"]["percent"] for n, r in candidates.items()}
    assert figures["float32 on onnxruntime"] == pytest.approx(summary["accuracy"]["float_percent"], abs=0.11)  # type: ignore[index]
    for name, figure in figures.items():
        if name.startswith("int4"):
            assert figure == pytest.approx(summary["accuracy"]["compressed_percent"], abs=0.11)  # type: ignore[index]


@pytest.mark.parametrize(("bits", "act_bits", "bound"), [(8, 8, 0.31), (4, 8, 0.6), (4, 4, 1.0)])
def test_ptq_beats_its_bound(bits: int, act_bits: int, bound: float, tmp_path: Path) -> None:
    """Bounds for the first 1,000 test images; bench/fashion.json has all 10,000."""
    ran = deploy(
        "compress",
        MODEL,
        "--bits",
        str(bits),
        "--act-bits",
        str(act_bits),
        "--calib",
        CALIB,
        "--eval",
        TEST,
        "-o",
        str(tmp_path / "c"),
        "--json",
    )
    accuracy = json.loads(ran.out)["summary"]["accuracy"]
    assert ran.code == 0 and accuracy["float_percent"] - accuracy["compressed_percent"] <= bound


def test_two_bits_need_the_rounding() -> None:
    """At 2 bits plain rounding destroys the network; second-order rounding does not. The test can fail: it compares both."""
    import tempfile

    figures = {}
    for name, flags in {
        "gptq": [],
        "plain": ["--rounding", "nearest", "--weight-scale", "max", "--bias-correction", "off"],
    }.items():
        with tempfile.TemporaryDirectory() as scratch:
            ran = deploy(
                "compress",
                MODEL,
                "--bits",
                "2",
                "--calib",
                CALIB,
                "--eval",
                TEST,
                "-o",
                f"{scratch}/c",
                "--json",
                *flags,
            )
            figures[name] = json.loads(ran.out)["summary"]["accuracy"]["compressed_percent"]
    assert figures["gptq"] > figures["plain"] + 20, figures


def test_second_run_reuses_every_stage(fashion_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(fashion_run, copy)
    (copy / "export" / "model.onnx").write_bytes(b"damaged")
    before = _manifest(copy / "compress")
    flags = [MODEL, "--bits", "4", "--calib", CALIB, "--eval", TEST, "-o", str(copy), "--samples", "100", "-q"]
    ran = deploy("all", *flags)
    assert ran.code == 0 and ran.out.count("(reused)") == 2, ran.out  # compress and profile; export was damaged
    assert _manifest(copy / "compress") == before


def test_report_of_two_runs_side_by_side(fashion_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "w8"
    assert deploy("compress", MODEL, "--calib", CALIB, "--eval", TEST, "-o", str(other / "compress")).code == 0
    ran = deploy("report", str(fashion_run), str(other), "-o", str(tmp_path / "r"))
    page = (tmp_path / "r" / "report.html").read_text()
    assert ran.code == 0 and "Side by side" in page and "http" not in page.replace("http://www.w3.org", "")
    assert [r["name"] for r in json.loads((tmp_path / "r" / "report.json").read_text())["runs"]] == ["out", "w8"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
def test_page_renders_in_a_browser(fashion_run: Path, tmp_path: Path) -> None:
    """Headless Chromium draws the page: the screenshot has colours of the plots and much text."""
    import numpy as np
    from PIL import Image

    shot = tmp_path / "page.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,4600", "--hide-scrollbars",
         f"--screenshot={shot}", f"file://{fashion_run / 'report' / 'report.html'}"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    blue = (np.abs(pixels - [37, 99, 235]).sum(1) < 20).sum()
    dark = (pixels.sum(1) < 150).sum()
    assert blue > 5_000 and dark > 10_000
