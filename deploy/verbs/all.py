"""`deploy all`: the whole chain from a checkpoint to the report. Its flags are those of the stages."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from deploy import config as configs
from deploy.config import argument, option
from deploy.errors import UserError
from deploy.stage import GROUP, Command, Outcome, Stage


def _chain() -> list[Stage]:
    """The announced stages that belong in the chain, in order (loaded directly: this module is itself announced)."""
    stages = [e.load() for e in entry_points(group=GROUP) if e.name != "all"]
    return sorted((s for s in stages if isinstance(s, Stage) and s.in_chain), key=lambda s: s.order)


@dataclasses.dataclass(frozen=True)
class _Own:
    model: str = argument("checkpoint", "")
    output: str = option("out", "folder to write the stages' folders and the report into", short="-o", identity=False)
    dry_run: bool = option(False, "print the plan, touch nothing")


def _config() -> type:
    return configs.merge("AllConfig", [_Own, *(s.config for s in _chain())], frozenset())


def run(config: Any) -> Outcome:
    """Run each stage on the folder of the one before, then the report."""
    from deploy.runner import execute
    from deploy.verbs.report import ReportConfig
    from deploy.verbs.report import run as report

    if not config.model:
        raise UserError("MODEL is missing: give a checkpoint, for example: deploy all model.pt --bits 4")
    root = Path(config.output)
    if config.dry_run:
        steps = [
            f"{s.name}: {step}"
            for s in _wanted(config)
            for step in s.plan(_settings(s, config, root, _source(s, root, config)))
        ]
        if not Path(config.model).exists():
            raise UserError(f"model {config.model} does not exist; check the path")
        return Outcome(
            tuple(f"{i}. {s}" for i, s in enumerate([*steps, f"report: write {root / 'report'}"], 1)), {"plan": steps}
        )
    lines: list[str] = []
    data: dict[str, Any] = {}
    code = 0
    for stage in _wanted(config):
        done = execute(stage, _settings(stage, config, root, _source(stage, root, config)))
        outcome = stage.describe(done.manifest["summary"], done.folder)
        lines += [
            *([] if lines else outcome.lines[:1]),
            *(f"{stage.name}: {line}" for line in (outcome.lines if lines else outcome.lines[1:])),
        ]
        lines[-1] += " (reused)" if done.reused else f" ({done.manifest['wall_seconds']:.1f} s)"
        data[stage.name] = done.manifest["summary"]
        code = max(code, outcome.code)
    page = report(ReportConfig(folder=(str(root),), output=str(root / "report")))
    return Outcome((*lines, *page.lines), {**data, "report": page.data}, page.next, code)


def _wanted(config: Any) -> list[Stage]:
    return [s for s in _chain() if s.wanted(config)]


def _source(stage: Stage, root: Path, config: Any) -> str:
    chain = _wanted(config)
    index = chain.index(stage)
    before = stage.after or (chain[index - 1].name if index else "")
    return str(root / before) if before else str(config.model)


def _settings(stage: Stage, config: Any, root: Path, source: str) -> Any:
    return configs.subset(stage.config, config, model=source, output=str(root / stage.name))


COMMAND = Command("all", "the whole chain: compress, export, profile, report", _config(), run, order=5)
