"""Tuning of register tiles: what wins is used and computes the same, and every way to fail is a sentence."""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from deploy.errors import ToolError, UserError
from hw.runtime.tvm import tune
from hw.runtime.tvm.machine import host
from hw.runtime.tvm.rules.tile import Tile, candidates
from hw.runtime.tvm.runtime import RUNTIME
from tests.conftest import TEST, deploy
from tests.hw.test_tvm import network, normal, run
from tests.hw.test_tvm_integers import quantized


def model() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["y"])]
    return network(nodes, {"x": (1, 32, 28, 28)}, {"w": normal(64, 32, 3, 3)})


def test_every_candidate_computes_the_same(tmp_path: Path) -> None:
    """Tiles change speed, not results: a convolution of integers is bit for bit the same with each."""
    made, want = quantized("uint8", 16, 40, 11, 3, 1, 1, 0)
    machine = replace(host(), amx=False)  # tile registers have no tiles to choose
    (work,) = tune.workloads(made, machine)
    x = normal(1, 16, 11, 11)
    rows, columns, depth = tune.sizes(work)
    tiles = candidates(rows, columns, machine, depth, machine.tile, 1)
    assert len(tiles) > 20
    for index, tile in enumerate((tiles[0], tiles[7], tiles[-1])):
        path = tmp_path / f"{index}.json"
        tune.write(path, machine, {work.key: {"tile": vars(tile)}})
        got, record = run(made, [x], replace(machine, tiles=tune.read(path, machine)))
        assert record["tuned_tiles"] == 1 and np.array_equal(got, want)


def test_tuning_is_bounded_and_its_database_serves_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db.json"
    said = RUNTIME.tune(model(), path, 60, tmp_path)
    assert said["tried"] == 1 and said["won"] in (0, 1)
    assert sum(t is not None for t in tune.read(path, host()).values()) == said["won"]
    assert RUNTIME.tune(model(), path, 60, tmp_path)["tried"] == 0, "what lost is remembered as well"
    assert RUNTIME.tune(model(), tmp_path / "other.json", 0, tmp_path)["tried"] == 0, "no time, no trial"


@pytest.mark.parametrize(
    "tile", [(4, 2, 16, 64, 1), (-4, -1, -16, 64, 7), (4, 2, 16, 32, 7), (5, 2, 3, 64, 6), (99, 2, 16, 64, 1)]
)
def test_a_tile_that_does_not_cover_its_output_is_not_taken(tile: tuple[int, ...]) -> None:
    (work,) = tune.workloads(model(), host())
    poisoned = replace(host(), tiles={work.key: Tile(*tile)})
    x = normal(1, 32, 28, 28)
    assert np.array_equal(run(model(), [x], poisoned)[0], run(model(), [x])[0])


def test_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "db.json"

    def add(who: int) -> None:
        for index in range(20):
            tune.write(path, host(), {f"{who} {index}": {"tile": None}})

    both = [multiprocessing.get_context("fork").Process(target=add, args=(i,)) for i in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert len(tune.read(path, host())) == 40


def test_only_a_clear_win_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (work,) = tune.workloads(model(), host())
    answers = iter([[1.0, 0.97, 1.2, 1.3, 1.4, 1.5]])
    monkeypatch.setattr(tune, "measure", lambda calls, rounds=0: next(answers))
    assert tune.tune_one(work, host()) is None, "3 % is no win"
    answers = iter([[1.0, 0.8, 1.2, 1.3, 1.4, 1.5], [1.0, 0.99]])
    assert tune.tune_one(work, host()) is None, "the second look did not confirm it"
    answers = iter([[1.0, 0.8, 1.2, 1.3, 1.4, 1.5], [1.0, 0.8]])
    row = tune.tune_one(work, host())
    assert row is not None and Tile(**row["tile"]) == candidates(*tune.sizes(work)[:2], host(), tune.sizes(work)[2])[1]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema": 9, "machines": {}}', '{"schema": 1, "machines": {"M": {"k": {"tile": {"rows": 1}}}}}'],
)
def test_a_corrupt_database_is_the_users_error(text: str, tmp_path: Path, fashion_run: Path) -> None:
    path = tmp_path / "db.json"
    path.write_text(text.replace('"M"', json.dumps(host().name)))
    with pytest.raises(UserError, match="database"):
        tune.read(path, host())
    ran = deploy(
        "profile", str(fashion_run / "export" / "float.onnx"), "--runtime", "tvm", "--tune-seconds", "1", "--tune-database", str(path), "-o",
        str(tmp_path / "p"),
    )  # fmt: skip
    assert ran.code == 2 and "database" in ran.err and not (tmp_path / "p").exists()


def test_a_child_that_dies_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child"
    script.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    script.chmod(0o755)
    from deploy.tools import Tool

    monkeypatch.setattr("hw.runtime.tvm.runtime._PYTHON", Tool(str(script)))
    with pytest.raises(ToolError, match="exit code -11"):
        RUNTIME.tune(model(), tmp_path / "db.json", 1, tmp_path)
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr("hw.runtime.tvm.runtime.TUNE_GRACE", 0.5)
    with pytest.raises(ToolError, match="ran over"):
        RUNTIME.tune(model(), tmp_path / "db.json", 0.2, tmp_path)
    assert not (tmp_path / "db.json").exists()


def test_profile_with_tuning(fashion_run: Path, tmp_path: Path) -> None:
    ran = deploy(
        "profile", str(fashion_run / "export"), "--runtime", "tvm", "--tune-seconds", "30", "--tune-database", str(tmp_path / "db.json"), "--samples",
        "100", "--eval", TEST, "--eval-samples", "128", "-o", str(tmp_path / "p"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    rows = json.loads((tmp_path / "p" / "profile.json").read_text())["candidates"]
    said = json.loads((tmp_path / "p" / "profile.json").read_text())["tuning"]
    assert len(said) == 2 and sum(r["tried"] for r in said.values()) > 0
    tuned = {n: r for n, r in rows.items() if "tuned on tvm" in n}
    assert len(tuned) <= sum(r["won"] > 0 for r in said.values()) + 1, "a tile of one file may serve the other"
    assert all(r["latency"]["samples"] >= 100 for r in tuned.values())


def test_a_database_serves_without_tuning(fashion_run: Path, tmp_path: Path) -> None:
    """Tuned tiles that another computer sent: used, compared, and a row of their own; refused where TVM is not measured."""
    file, path = fashion_run / "export" / "float.onnx", tmp_path / "db.json"
    rows = {}
    for work in tune.workloads(onnx.load(file), host()):
        height, columns, depth = tune.sizes(work)
        rows[work.key] = {"tile": vars(candidates(height, columns, host(), depth)[1])}
    tune.write(path, host(), rows)
    common = ["profile", str(file), "--tune-database", str(path), "--samples", "100", "-o", str(tmp_path / "p")]
    ran = deploy(*common, "--runtime", "tvm")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "p" / "profile.json").read_text())
    assert "float32 tuned on tvm" in found["candidates"] and "error" not in found["candidates"]["float32 tuned on tvm"]
    assert set(found["memory_mb"]) == {found["baseline"], found["chosen"]} and all(
        0 <= m["peak"] < 500 for m in found["memory_mb"].values()
    )
    assert deploy("verify", str(tmp_path / "p")).code == 0
    ran = deploy(*common[:-1], str(tmp_path / "q"))
    assert ran.code == 2 and "--runtime tvm" in ran.err
