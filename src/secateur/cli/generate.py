"""secateur generate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Common


def generate(
    model: Annotated[str | None, Parameter(help="A Hub id, a local folder, 'reference', or a recipe file.")] = None,
    *,
    calibration: Annotated[str | None, Parameter(help="self, a source by name, a file, or a Hub data set.")] = None,
    samples: Annotated[int | None, Parameter(help="How many.")] = None,
    length: Annotated[int | None, Parameter(help="Tokens of each.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for the set; the store, if left out.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Make a calibration set only: by default the model writes it itself, and the least likely fifth is dropped."""
    asked = {"calibration.source": calibration, "calibration.samples": samples, "calibration.length": length}
    recipe = common.load(model, asked, "generate")
    from secateur.cli.console import print_json, print_line

    if common.dry_run:
        from secateur.cli.check import describe_set

        return describe_set(recipe, common, out)

    from secateur import api

    with common.reporter() as reporter:
        result = api.generate(recipe, out, common.store, reporter)
    if common.json:
        print_json({"folder": str(result.folder), "manifest": result.manifest})
        return 0
    for line in set_lines(result.folder, result.manifest):
        print_line(line)
    return 0


def set_lines(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """A calibration set, for people."""
    account, spec = manifest["account"], manifest["spec"]
    lines = [f"calibration set  {folder}"]
    lines.append(f"samples          {manifest['samples']} of {spec['length']} tokens from {manifest['source']!r}")
    if "generations" in account:
        lines.append(
            f"generations      {account['generations']}, of which {account['generations_dropped']} were dropped and "
            f"{account['generations_ended_by_model']} ended by the model; {account['tokens_generated']:,} tokens "
            f"in {manifest['phases']['generate']['seconds']:.1f} s"
        )
    return lines
