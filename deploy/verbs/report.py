"""`deploy report`: the page and its JSON for one or more output folders; two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy import artifact
from deploy.config import argument, option
from deploy.errors import UserError
from deploy.stage import Command, Outcome


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `deploy report`."""

    folder: tuple[str, ...] = argument("output folders (two runs are shown side by side)", (), many=True)
    output: str = option("report", "folder to write", short="-o", identity=False)


def run(config: ReportConfig) -> Outcome:
    """Write report.html and report.json. Raises UserError when the folders hold nothing to report."""
    if not config.folder:
        raise UserError("FOLDER is missing: give a folder that a deploy command wrote")
    from deploy.report.page import build

    target = Path(config.output).absolute()
    html, data = build([Path(f) for f in config.folder], target)
    target.mkdir(parents=True, exist_ok=True)
    artifact.write_file(target / "report.html", html.encode())
    artifact.write_file(target / "report.json", artifact.canonical(data))
    return Outcome(
        (f"wrote {Path(config.output) / 'report.html'} ({len(html) / 1e6:.2f} MB, self-contained) and report.json",),
        {"html": str(target / "report.html")},
        f"open {Path(config.output) / 'report.html'}",
    )


COMMAND = Command("report", "one page from output folders, two runs side by side", ReportConfig, run, order=50)
