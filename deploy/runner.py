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


def rank() -> int:
    """This process' number among those that a launcher (torchrun, accelerate launch) started; 0 for a lone one."""
    return int(os.environ.get("RANK") or 0)


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
    settings = as_dict(config, identity_only=True)
    for name in inputs:
        if Path(str(settings.get(name, ""))).absolute() == inputs[name]:  # a path: its content counts, not its name
            settings.pop(name)
    key = artifact.identity(stage.name, settings, hashes, used)
    manifest = artifact.reusable(target, key)
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
