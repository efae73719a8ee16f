"""Artifact folders: built under a temporary name, fsynced, renamed; a manifest with the hash of everything.

A folder exists whole or not at all. A result is reused only if stage, config, inputs and versions match by full sha256
and every file still has its recorded hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy import __version__
from deploy.errors import UserError

SCHEMA = 1
MANIFEST = "manifest.json"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def hash_input(path: Path) -> str:
    """sha256 of a file; of an artifact folder its key and the hashes of its files (not its wall time); of any other folder its sorted names and contents."""
    if path.is_file():
        return sha256_file(path)
    manifest = path / MANIFEST
    if manifest.is_file():
        made = read_manifest(path)
        return sha256_bytes(canonical({"key": made.get("key"), "files": made["files"]}))
    rows = [[p.relative_to(path).as_posix(), sha256_file(p)] for p in sorted(path.rglob("*")) if p.is_file()]
    return sha256_bytes(canonical(rows))


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def versions(packages: tuple[str, ...], machine: bool = False) -> dict[str, str]:
    """Installed versions by distribution name, without importing anything."""
    rows = {"deploy": __version__, "python": platform.python_version()}
    if machine:
        rows["machine"] = f"{cpu_name()}, {os.cpu_count()} cores"
    for name in packages:
        try:
            rows[name] = version(name)
        except PackageNotFoundError:
            continue
    return rows


def identity(stage: str, config: dict[str, Any], inputs: dict[str, str], used: dict[str, str]) -> str:
    """The full sha256 under which a result may be reused."""
    return sha256_bytes(
        canonical({"schema": SCHEMA, "stage": stage, "config": config, "inputs": inputs, "versions": used})
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a single file whole or not at all: temporary name in the same folder, fsync, os.replace."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_dir(path.parent)


def _fsync_dir(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _recover(target: Path) -> None:
    """Remove what killed runs left beside `target`, and put back a folder that was being replaced when one died."""
    for left in target.parent.glob(f".{target.name}.*-*-*"):
        kind, _, rest = left.name[len(target.name) + 2 :].partition("-")
        pid = rest.partition("-")[0]
        if kind not in ("tmp", "old") or not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if kind == "old" and not target.exists():
            os.rename(left, target)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _foreign(folder: Path) -> str:
    """The first thing in a folder that its own manifest does not name, or ''."""
    try:
        known = {MANIFEST, *read_manifest(folder)["files"]}
    except UserError:
        return MANIFEST if (folder / MANIFEST).exists() else next(p.name for p in folder.iterdir())
    return next(
        (
            p.relative_to(folder).as_posix()
            for p in sorted(folder.rglob("*"))
            if not p.is_dir() and p.relative_to(folder).as_posix() not in known
        ),
        "",
    )


def check_target(target: Path) -> None:
    """Refuse an output path that holds anything but an artifact of ours, before any work is done.

    Raises UserError for a file, a foreign non-empty folder, or a parent that cannot be written.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"output {target} exists and is not a folder; give another -o")
    if target.is_dir() and any(target.iterdir()):
        foreign = _foreign(target)
        if foreign:
            raise UserError(
                f"output folder {target} holds files that deploy did not write ({foreign}); give another -o or empty it"
            )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"output {target} cannot be written: {parent} is not a writable folder; give another -o")


def fsync_tree(folder: Path) -> None:
    """Every file and folder below `folder`, and itself, to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _fsync_dir(path)
            continue
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    _fsync_dir(folder)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that vanishes."""
    with tempfile.TemporaryDirectory(prefix="deploy-scratch-") as made:
        yield Path(made)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it becomes `target`, on any failure it vanishes."""
    target = target.absolute()
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    tag = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder = target.with_name(f".{target.name}.tmp-{tag}")
    folder.mkdir()
    try:
        yield folder
        fsync_tree(folder)
        if target.exists():
            old = target.with_name(f".{target.name}.old-{tag}")
            os.rename(target, old)
            os.rename(folder, target)
            shutil.rmtree(old)
        else:
            os.rename(folder, target)
        _fsync_dir(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact folder. Raises UserError when there is none or it is not readable."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not an output of deploy: it has no {MANIFEST}; give a folder that a deploy command wrote"
        ) from None
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged (not JSON); run the command that wrote {folder} again") from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("schema") != SCHEMA
        or not isinstance(manifest.get("files"), dict)
    ):
        raise UserError(
            f"{path} has not the schema {SCHEMA} of this version; run the command that wrote {folder} again"
        )
    return manifest


def damaged(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of recorded files that are missing or have another content; unsafe names count as damaged."""
    bad = []
    for name, row in manifest["files"].items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.is_file() or sha256_file(path) != row.get("sha256"):
            bad.append(name)
    return bad


def find(folder: Path) -> list[Path]:
    """Every artifact folder at or below `folder`, outermost first."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist or is not a folder; give a folder that a deploy command wrote")
    return [
        p.parent
        for p in sorted(folder.rglob(MANIFEST))
        if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]


def reusable(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest of `folder` if it was made under `key` and every file is still whole, else None."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except UserError:
        return None
    return manifest if manifest.get("key") == key and not damaged(folder, manifest) else None


def write_manifest(
    folder: Path,
    *,
    stage: str,
    key: str,
    config: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    used: dict[str, str],
    seed: int,
    started: float,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Hash every file in `folder` and write its manifest."""
    files = {
        p.relative_to(folder).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "key": key,
        "config": config,
        "inputs": inputs,
        "versions": used,
        "seed": seed,
        "wall_seconds": round(time.time() - started, 3),
        "files": files,
        "summary": summary,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
