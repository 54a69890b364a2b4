"""secateur export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateur.cli.common import Output


def export(
    folder: Annotated[Path, Parameter(name="SET", help="A finished calibration set.")],
    *,
    out: Annotated[Path, Parameter(help="A new folder; or a file, named as its format: x.parquet, x.jsonl.gz, x.txt.")],
    format: Annotated[
        str | None,
        Parameter(help="hf, parquet, jsonl, jsonl.gz or text; if left out, what OUT is named as, else hf."),
    ] = None,
    pad: Annotated[bool, Parameter(help="Fill all rows up to the longest, masked.", negative=())] = False,
    model: Annotated[
        str | None, Parameter(help="Where the tokenizer is, for --pad and text; the set's own model, if left out.")
    ] = None,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Write a calibration set for other tools: token ids with masks, their text, and a data set card."""
    from secateur import api
    from secateur.cli.console import print_json, print_line

    with common.reporter():
        done = api.export_set(folder, out, format, pad, model)
    if common.json:
        facts = {"samples": done.samples, "tokens": done.tokens, "padding": done.padding}
        print_json({"place": str(done.place), "format": done.format, **facts})
        return 0
    print_line(f"exported         {done.place} ({done.format})")
    padded = f", and {done.padding:,} of padding, masked" if done.padding else ""
    print_line(f"samples          {done.samples}, {done.tokens:,} tokens{padded}")
    return 0
