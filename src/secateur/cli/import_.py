"""secateur import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateur.cli.common import Output


def import_(
    data: Annotated[
        Path,
        Parameter(name="DATA", help="A parquet, jsonl, jsonl.gz, json, pt or pth file with input_ids, or a folder."),
    ],
    *,
    model: Annotated[str, Parameter(help="The model whose tokens they are: a Hub id, a local folder, or 'reference'.")],
    out: Annotated[Path | None, Parameter(help="Folder for the set; the store, if left out.")] = None,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Make a calibration set of token ids from elsewhere: an export, a data set, another tool's examples."""
    from secateur import api
    from secateur.cli.console import print_json, print_line

    with common.reporter() as reporter:
        result = api.import_set(data, model, out, common.store, reporter)
    manifest = result.manifest
    if common.json:
        print_json({"folder": str(result.folder), "manifest": manifest})
        return 0
    removed = manifest["account"]["padding_removed"]
    print_line(f"calibration set  {result.folder}")
    print_line(
        f"samples          {manifest['samples']} of up to {manifest['spec']['length']} tokens, {manifest['tokens']:,} in all"
        + (f"; {removed:,} of padding removed" if removed else "")
    )
    return 0
