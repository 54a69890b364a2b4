"""secateur generate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    recipe = common.load(
        model, {"calibration.source": calibration, "calibration.samples": samples, "calibration.length": length}
    )
    from secateur.cli.console import print_json, print_line

    if common.dry_run:
        from secateur.pipeline.calibrate import plan_calibration

        stage = plan_calibration(recipe)
        print_json({"spec": stage.spec, "folder": str(out or stage.folder(common.store))})
        return 0

    from secateur import api

    with common.reporter() as reporter:
        result = api.generate(recipe, out, common.store, reporter)
    if common.json:
        print_json({"folder": str(result.folder), "manifest": result.manifest})
        return 0
    manifest, account = result.manifest, result.manifest["account"]
    print_line(f"calibration set  {result.folder}")
    print_line(
        f"samples          {manifest['samples']} of {manifest['spec']['length']} tokens from {manifest['source']!r}"
    )
    if "generations" in account:
        print_line(
            f"generations      {account['generations']}, of which {account['generations_dropped']} were dropped and "
            f"{account['generations_ended_by_model']} ended by the model; {account['tokens_generated']:,} tokens "
            f"in {manifest['phases']['generate']['seconds']:.1f} s"
        )
    return 0
