"""secateur study"""

from __future__ import annotations

import shlex
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Output


def study(
    target: Annotated[
        str | None, Parameter(name="study", help="A study file, or the name of one that comes with the package.")
    ] = None,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for results and answers; one in the store.")] = None,
    workers: Annotated[
        int | None, Parameter(help="Processes on this machine (0: this one); as many as cores and memory allow.")
    ] = None,
    ray: Annotated[str | None, Parameter(help="Run on the Ray cluster at this address, or on a local one.")] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", help="Any value of the base recipe as key.path=value; may be repeated.", negative=()),
    ] = None,
    device: Annotated[str | None, Parameter(help="auto, cpu, cuda, cuda:1, ...")] = None,
    dry_run: Annotated[
        bool, Parameter(help="List what is cached, to run, and failed; run nothing.", negative=())
    ] = False,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Run a study: prune and evaluate every cell of its axes with every seed, and answer its question."""
    from secateur.cli.console import print_json, print_line
    from secateur.errors import UsageError
    from secateur.studies.files import study_names

    if target is None:
        raise UsageError(f"Which study? Give a file, or one that comes with the package: {', '.join(study_names())}.")
    if workers is not None and (workers < 0 or (ray is not None and workers == 0)):
        raise UsageError(f"--workers is a number of processes, 0 for this one alone (not with --ray); found {workers}.")
    from secateur.models.loading import quiet_transformers
    from secateur.studies.plan import plan_study
    from secateur.studies.run import run_study
    from secateur.studies.study_file import load_study

    quiet_transformers()
    plan = plan_study(load_study(target, set_ or [], device))
    if dry_run:
        from secateur.cli.check import describe_study

        return describe_study(plan, common, out)
    command = shlex.join(["secateur", *sys.argv[1:]])
    with _reporter(common) as reporter:
        found = run_study(plan, out, common.store, reporter, workers, ray, command)
    if common.json:
        print_json({"folder": str(found.folder), "answers": found.answers, "done": found.done, "failed": found.failed})
    else:
        print_line(plan.study.spec.question)
        for answer in found.answers:
            print_line(f"{answer['verdict']:14} {answer['question']} {answer['sentence']}")
        print_line()
        for digest, error in found.failed.items():
            print_line(f"failed: {plan.works[digest].cell.said()}: {error}")
        print_line(f"{found.done} of {len(plan.works)} cells done; results: {found.folder}")
        if found.failed:
            print_line("Failed cells are missing values. The same command tries them again.")
    return 1 if found.failed else 0


def _reporter(common: Output) -> Any:
    """The console's, with the expected end beside the cells that are done."""
    from secateur.cli.console import ConsoleReporter

    class StudyReporter(ConsoleReporter):
        started: float | None = None
        first = last = 0

        def progress(self, what: str, done: int, total: int) -> None:
            if self._bars or self.quiet:
                super().progress(what, done, total)
                return
            if self.started is None:
                self.started, self.first = time.monotonic(), done
            if done == self.last:
                return
            self.last = done
            self.console.print(f"{what}: {done} of {total}{self._end(done, total)}", soft_wrap=True, markup=False)

        def _end(self, done: int, total: int) -> str:
            new = done - self.first
            if not new or done >= total or self.started is None:
                return ""
            left = timedelta(seconds=(time.monotonic() - self.started) / new * (total - done))
            return f", expected end {datetime.now() + left:%H:%M:%S} (in {str(left).partition('.')[0]})"

    return StudyReporter(common.quiet, common.verbose)
