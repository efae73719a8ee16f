"""Bits by layer: sensitivity, the search and its budgets, shared and resumed studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import CALIB, MODEL, TEST, deploy
from hypothesis import given
from hypothesis import strategies as st

from compress.config import CompressConfig
from compress.search.budget import Budget, parse
from compress.search.optimize import Point, choose, greedy, pareto, search
from compress.search.trial import Bench
from deploy.errors import BoundError, UserError

QUICK = ("--bits", "4", "--act-bits", "4", "--calib", CALIB, "--calib-samples", "32", "--trials", "12")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "out"
    ran = deploy("compress", MODEL, *QUICK, "--budget", "size=130kB", "--eval", TEST, "-o", str(out))
    assert ran.code == 0, ran.err
    assert "bits chosen for size=130kB" in ran.out
    return out


def test_the_file_keeps_the_budget(searched: Path) -> None:
    size = (searched / "model.safetensors").stat().st_size
    record = json.loads((searched / "record.json").read_text())["search"]
    assert size <= 130_000
    assert size == record["chosen"]["cost"]
    bits = {n: r["bits"] for n, r in json.loads((searched / "record.json").read_text())["layers"].items()}
    assert bits == record["chosen"]["bits"]
    assert len(set(bits.values())) > 1


def test_sensitivity_orders_the_widths(searched: Path) -> None:
    rows = json.loads((searched / "record.json").read_text())["search"]["sensitivity"]
    assert len(rows) == 7
    assert len({round(r["2"], 6) for r in rows.values()}) == 7
    for row in rows.values():
        assert row["2"] > row["4"] > 0.9 * row["8"]


def test_the_report_prints_the_command_of_a_point(searched: Path, tmp_path: Path) -> None:
    assert deploy("report", str(searched), "-o", str(tmp_path / "r")).code == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert "apply this point" in page and "Pareto" in page and "Sensitivity" in page
    record = json.loads((searched / "record.json").read_text())["search"]
    at = next(k for k, p in enumerate(record["points"]) if p["bits"] == record["chosen"]["bits"])
    flags = [v for f in record["flags"][str(at)] for v in ("--layer", f)]
    out = tmp_path / "applied"
    ran = deploy("compress", MODEL, "--bits", "4", "--act-bits", "4", "--calib", CALIB, "--calib-samples", "32", *flags, "-o", str(out))  # fmt: skip
    assert ran.code == 0, ran.err
    assert (out / "model.safetensors").read_bytes() == (searched / "model.safetensors").read_bytes()


def test_an_accuracy_budget_takes_the_smallest(tmp_path: Path) -> None:
    out = tmp_path / "o"
    ran = deploy("compress", MODEL, *QUICK, "--budget", "accuracy=-5", "-o", str(out))
    assert ran.code == 0, ran.err
    record = json.loads((out / "record.json").read_text())["search"]
    assert record["chosen"]["drop"] <= 5
    assert all(p["drop"] > 5 for p in record["points"] if p["cost"] < record["chosen"]["cost"])


def test_luts_of_a_board(tmp_path: Path) -> None:
    """Fewer bits cost fewer LUTs at the same frame rate; the search keeps to the estimate."""
    out = tmp_path / "o"
    args = ("--board", "pynq-z2", "--target-fps", "200")
    ran = deploy("compress", MODEL, *QUICK, "--budget", "luts=14000", *args, "-o", str(out))
    assert ran.code == 0, ran.err
    record = json.loads((out / "record.json").read_text())["search"]
    assert record["cost"] == "luts" and record["chosen"]["cost"] <= 14000
    uniform = record["uniform"]
    assert uniform["2"]["cost"] < uniform["4"]["cost"] < uniform["8"]["cost"]
    missing = deploy("compress", MODEL, *QUICK, "--budget", "luts=14000", "-o", str(tmp_path / "p"))
    assert missing.code == 2 and "--board" in missing.err


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--budget", "size"), 2, "the forms are size=0.3MB, accuracy=-0.5, luts=N"),
        (("--budget", "speed=3"), 2, "is no budget"),
        (("--budget", "accuracy=0.5"), 2, "written with a minus"),
        (("--budget", "size=0"), 2, "more than 0"),
        (("--budget", "luts=99999", "--board", "pynq-z2", "--target-fps", "1e7"), 4, "cannot be reached"),
        (("--budget", "size=10kB"), 4, "no trial keeps size within 10,000"),
        (("--budget", "size=1MB", "--study", "sqlite:////nowhere/x.db"), 2, "--study"),
    ],
)
def test_faults(tmp_path: Path, flags: tuple[str, ...], code: int, text: str) -> None:
    ran = deploy("compress", MODEL, *QUICK, "--trials", "4", *flags, "-o", str(tmp_path / "o"))
    assert ran.code == code, ran.err
    assert text in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "o").exists()


def test_a_pinned_layer_keeps_its_width_and_a_large_seed_is_one(tmp_path: Path) -> None:
    out = tmp_path / "o"
    ran = deploy(
        "compress", MODEL, *QUICK, "--trials", "4", "--budget", "size=0.3MB", "--layer", "features.3.0=6", "--seed", "5000000000", "-o", str(out)
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads((out / "record.json").read_text())["layers"]["features.3.0"]["bits"] == 6


def test_studies_are_kept_apart(tmp_path: Path) -> None:
    """Other samples (or weights): other trials, in the same storage."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    losses = []
    for count in ("32", "48"):
        out = tmp_path / count
        ran = deploy(
            "compress", MODEL, *QUICK, "--calib-samples", count, "--trials", "4", "--budget", "size=0.3MB", "--study", url, "-o", str(out)
        )  # fmt: skip
        assert ran.code == 0, ran.err
        losses.append(json.loads((out / "record.json").read_text())["search"]["uniform"]["8"]["loss"])
    assert losses[0] != losses[1]


def test_without_samples_or_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = deploy("compress", MODEL, *QUICK, "--budget", "size=1MB", "-o", str(tmp_path / "o"))
    assert ran.code == 2 and "needs optuna" in ran.err


class FakeBench(Bench):
    """A model whose loss is known: three layers, each bit fewer costs its weight."""

    def __init__(self) -> None:
        self.names = ["a", "b", "c"]
        self.elements = {"a": 100, "b": 1000, "c": 10}
        self.asked = 0

    def loss(self, bits: dict[str, int]) -> float:
        self.asked += 1
        return sum({"a": 5, "b": 1, "c": 3}[n] * (8 - b) for n, b in bits.items())

    def agreement(self) -> float:
        return 99.0


WIDE = {n: [2, 4, 8] for n in "abc"}


def test_a_study_is_resumed_and_shared(tmp_path: Path) -> None:
    """A second worker on the same storage takes over what is there, and stops at the common number of trials."""
    bench = FakeBench()
    sensitivity = {n: {b: bench.loss({n: b}) for b in (2, 4, 8)} for n in "abc"}
    url = f"sqlite:///{tmp_path / 's.db'}"

    def cost(bits: dict[str, int]) -> float:
        return float(sum(bench.elements[n] * b for n, b in bits.items()))

    bench.asked = 0
    first = search(bench, cost, WIDE, sensitivity, 8, 0, url, "x")
    assert 0 < bench.asked <= 8
    before = bench.asked
    second = search(bench, cost, WIDE, sensitivity, 14, 0, url, "x")
    assert bench.asked - before <= 6
    assert {tuple(p.bits.values()) for p in first} <= {tuple(p.bits.values()) for p in second}
    before = bench.asked
    third = search(bench, cost, WIDE, sensitivity, 14, 1, url, "x")
    assert bench.asked == before
    assert sorted(p.loss for p in third) == sorted(p.loss for p in second)
    assert search(FakeBench(), cost, WIDE, sensitivity, 8, 0, "", "x") == search(FakeBench(), cost, WIDE, sensitivity, 8, 0, "", "x")  # fmt: skip


def test_greedy_takes_the_cheapest_loss_first() -> None:
    bench = FakeBench()
    sensitivity = {n: {b: bench.loss({n: b}) for b in (2, 4, 8)} for n in "abc"}
    walk = greedy(bench, sensitivity, {**WIDE, "c": [8]})
    assert walk[0] == {"a": 8, "b": 8, "c": 8}
    assert walk[1] == {"a": 8, "b": 4, "c": 8}  # least loss per byte
    assert walk[-1] == {"a": 2, "b": 2, "c": 8}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_pareto_points_are_beaten_by_none(rows: list[tuple[int, int]]) -> None:
    points = [Point(float(a), float(b), 0.0, {}) for a, b in rows]
    front = pareto(points)
    assert front
    for p in points:
        assert any(q.loss <= p.loss and q.cost <= p.cost for q in front)
    for p in front:
        assert not any((q.loss < p.loss and q.cost <= p.cost) or (q.loss <= p.loss and q.cost < p.cost) for q in points)


def test_a_board_without_a_budget_decides_nothing() -> None:
    plain = CompressConfig(board="pynq-z2", target_fps=50.0, budget="size=1MB")
    assert (plain.board, plain.target_fps) == ("", 0.0)
    assert CompressConfig(board="pynq-z2", target_fps=50.0, budget="luts=9").board == "pynq-z2"


def test_budgets() -> None:
    assert parse("size=0.3MB") == Budget("size", 300_000)
    assert parse("size=2KiB") == Budget("size", 2048)
    assert parse("accuracy=-0.5") == Budget("accuracy", 0.5)
    assert parse("luts=20000") == Budget("luts", 20000)
    for bad in ("", "size=", "size=nanMB", "luts=5MB", "size=-1kB"):
        with pytest.raises(UserError):
            parse(bad)
    points = [Point(1.0, 10.0, 0.2, {}), Point(0.5, 20.0, 0.1, {}), Point(2.0, 5.0, 3.0, {})]
    assert choose(points, Budget("size", 15)).cost == 10
    assert choose(points, Budget("accuracy", 0.15)).cost == 20
    with pytest.raises(BoundError, match=r"best: 0\.10 lost"):
        choose(points, Budget("accuracy", 0.01))
