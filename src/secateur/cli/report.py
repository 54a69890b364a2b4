"""secateur report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Output


def report(
    folders: Annotated[list[Path], Parameter(name="DIR", help="Folders of studies.", negative=())],
    *,
    out: Annotated[
        Path | None, Parameter(help="The page; if left out, report.html in the folder of the one study.")
    ] = None,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Make one page of what studies found: answers, every repeat, scores, provenance; figures and tables beside it."""
    from secateur.cli.console import print_json, print_line
    from secateur.reports.study_page import report as write

    done = write(folders, out)
    if common.json:
        print_json(done)
        return 0
    for study in done["studies"]:
        _print(study)
    print_line(f"page      {done['page']}")
    print_line(f"figures   {done['figures']}")
    return 0


def _print(study: dict[str, Any]) -> None:
    from secateur.cli.console import print_line

    print_line(study["question"])
    for note in study["notes"]:
        print_line(f"  note: {note}")
    for answer in study["answers"]:
        print_line(f"  {answer.get('verdict') or 'undecided'}: {answer.get('sentence', '')}")
    print_line()
