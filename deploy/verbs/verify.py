"""`deploy verify`: every hash and parity check of output folders again, on fresh inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy import artifact, errors
from deploy.config import argument, option
from deploy.stage import Command, Outcome, Stage, discover


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `deploy verify`."""

    folder: str = argument("output folder, or a folder of several", "")
    arch: str = option("", "architecture, where the recipe names a factory outside the known families")
    seed: int = option(1234, "seed of the fresh inputs", low=0, high=2**63 - 1)


def run(config: VerifyConfig) -> Outcome:
    """Exit code 4 when anything fails; UserError when there is nothing to verify."""
    if not config.folder:
        raise errors.UserError("FOLDER is missing: give a folder that a deploy command wrote")
    root = Path(config.folder)
    folders = artifact.find(root)
    if not folders:
        raise errors.UserError(f"{root} holds no output of deploy; give a folder that a deploy command wrote")
    verbs = discover()
    rows: list[tuple[str, str, bool, str]] = []
    for folder in folders:
        name = str(folder.relative_to(root)) if folder != root else folder.name
        manifest = artifact.read_manifest(folder)
        bad = artifact.damaged(folder, manifest)
        rows.append(
            (
                name,
                "files have their recorded sha256",
                not bad,
                f"{len(manifest['files'])} files" if not bad else f"damaged: {', '.join(bad[:3])}",
            )
        )
        for key, source in manifest["inputs"].items():
            path = _find_input(Path(source["path"]), folder)
            if path is None:
                rows.append((name, f"input {key}", True, "no longer here; not checked"))
                continue
            same = artifact.hash_input(path) == source["sha256"]
            rows.append((name, f"made from this {key}", same, str(path) if same else f"{path} has changed since"))
        stage = verbs.get(manifest["stage"])
        if not bad and isinstance(stage, Stage) and stage.check is not None:
            rows += [(name, what, ok, figure) for what, ok, figure in stage.check(folder, config.seed, config.arch)]
    failed = [r for r in rows if not r[2]]
    lines = [f"{'ok  ' if ok else 'FAIL'} {name}: {what}: {figure}" for name, what, ok, figure in rows]
    lines.append(f"{len(rows) - len(failed)} of {len(rows)} checks passed")
    data = {"checks": [{"folder": n, "check": w, "passed": ok, "figure": f} for n, w, ok, f in rows]}
    return Outcome(tuple(lines), data, code=errors.BOUND if failed else errors.OK)


def _find_input(recorded: Path, folder: Path) -> Path | None:
    """The recorded path, or the folder of the same name beside this one when the whole tree was moved."""
    if recorded.exists():
        return recorded
    beside = folder.parent / recorded.name
    return beside if beside.exists() and beside != folder else None


COMMAND = Command("verify", "check every hash and parity of an output folder again", VerifyConfig, run, order=80)
