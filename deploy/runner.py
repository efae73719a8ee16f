"""Run one stage: hash what goes in, reuse or rebuild, publish the folder with its manifest."""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import artifact
from deploy.config import as_dict
from deploy.errors import UserError
from deploy.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """An artifact folder and its manifest; `reused` when nothing had to be done."""

    folder: Path
    manifest: dict[str, Any]
    reused: bool


def processes() -> int:
    """How many processes a launcher (torchrun, accelerate launch) started; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdigit() and os.environ.get("MASTER_ADDR") else 1


def rank() -> int:
    """This process' number among those of a launcher; 0 for a lone one."""
    number = os.environ.get("RANK", "")
    return int(number) if number.isdigit() and processes() > 1 else 0


def settings_of(config: Any, inputs: dict[str, Path]) -> dict[str, Any]:
    """The settings that decide a result, without the paths of its inputs: their content counts, not their name."""
    settings = as_dict(config, identity_only=True)
    return {k: v for k, v in settings.items() if k not in inputs or Path(str(v)).absolute() != inputs[k].absolute()}


def _place(target: Path) -> AbstractContextManager[Path]:
    """Where a stage writes: beside its output, to be published; for all but the first of several processes a folder that is
    thrown away (they work on the same result)."""
    return artifact.staging(target) if rank() == 0 else artifact.scratch()


def execute(stage: Stage, config: Any) -> Finished:
    """Run `stage` with `config` (which has `output` and `seed`), or reuse its folder when nothing changed.

    Raises UserError for missing inputs or a foreign output folder, and whatever the stage raises; in every such case the
    output folder is as it was before.
    """
    started = time.time()
    target = Path(config.output).absolute()
    inputs = {name: path.absolute() for name, path in stage.inputs(config).items()}
    for name, path in inputs.items():
        if not path.exists():
            raise UserError(f"{name} {path} does not exist; check the path")
        if path == target or target in path.parents:
            raise UserError(f"output {target} would overwrite its own input {path}; give another -o")
    artifact.check_target(target)
    hashes = {name: artifact.hash_input(path) for name, path in inputs.items()}
    used = artifact.versions(stage.packages, stage.machine)
    key = artifact.identity(stage.name, settings_of(config, inputs), hashes, used)
    manifest = None if stage.fleeting(config) else artifact.reusable(target, key)
    if manifest is not None:
        log.info("%s: %s is up to date, reused", stage.name, target)
        return Finished(target, manifest, True)
    with _place(target) as folder:
        summary = stage.run(config, folder)
        recorded = {n: {"path": str(inputs[n]), "sha256": h} for n, h in hashes.items()}
        manifest = artifact.write_manifest(
            folder,
            stage=stage.name,
            key=key,
            config=as_dict(config),
            inputs=recorded,
            used=used,
            seed=config.seed,
            started=started,
            summary=summary,
        )
    return Finished(target, manifest, False)
