"""secateur prune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secateur.cli.common import Common, check_evaluation_text

if TYPE_CHECKING:
    from secateur.api import Result


def prune(
    model: Annotated[
        str | None, Parameter(help="A Hub id, a local folder, 'reference' (the bundled model), or a recipe file.")
    ] = None,
    *,
    method: Annotated[str | None, Parameter(help="See: secateur ls methods.")] = None,
    pattern: Annotated[str | None, Parameter(help="unstructured, or N:M such as 2:4 (keep 2 of every 4).")] = None,
    sparsity: Annotated[float | None, Parameter(help="Share of weights to set to zero.")] = None,
    calibration: Annotated[str | None, Parameter(help="self, a source by name, a file, or a Hub data set.")] = None,
    samples: Annotated[int | None, Parameter(help="How many, of calibration data.")] = None,
    length: Annotated[int | None, Parameter(help="Tokens of each.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for the pruned model; the store, if left out.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Prune MODEL, or what a recipe file says, into a folder that transformers loads.

    Calibration data is made first (by default the model writes it itself), then the model is pruned block by block,
    saved, read back and verified, and measured against the dense model.
    """
    recipe = common.load(
        model,
        {
            "pruning.method": method,
            "pruning.pattern": pattern,
            "pruning.sparsity": sparsity,
            "calibration.source": calibration,
            "calibration.samples": samples,
            "calibration.length": length,
        },
        "prune",
    )
    if common.dry_run:
        from secateur.cli.check import describe

        return describe(recipe, common, out)

    from secateur import api
    from secateur.errors import SecateurError
    from secateur.pruning.workers import Workers

    try:
        if recipe.evaluation.enabled:
            check_evaluation_text(recipe)
        with common.reporter() as reporter:
            result = api.prune(recipe, out, common.store, reporter)
    except SecateurError as error:
        if Workers.first_to_fail():
            raise
        return error.exit_code
    finally:
        Workers.stop()
    if result.manifest:  # others than the first of several processes have nothing to say
        _show(result, common.json)
    return 0


def _show(result: Result, as_json: bool) -> None:
    from secateur.cli.console import print_json, print_line

    manifest = result.manifest
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "calibration": str(result.calibration) if result.calibration else None,
                "manifest": manifest,
                "scores": result.scores,
                "dense_scores": result.dense_scores,
            }
        )
        return
    print_line(f"pruned model   {result.folder}")
    if result.calibration:
        print_line(f"calibration    {result.calibration}")
    print_line(
        f"sparsity       {manifest['sparsity']:.2%} of the prunable weights ({manifest['spec']['pattern']}), "
        f"{manifest['sparsity_of_all']:.2%} of all; verified after saving"
    )
    for line in score_lines(result.scores, result.dense_scores):
        print_line(line)
    phase = manifest["phases"]["prune"]
    print_line(f"pruning took   {phase['seconds']:.1f} s, peak memory {phase['peak_mib']:,.0f} MiB")


def score_lines(scores: dict, dense_scores: dict) -> list[str]:
    """Perplexity and fidelity, for people."""
    if not scores:
        return []
    from secateur.evaluation.protocol import said

    found = scores["perplexity"]
    what = f"({said(found)}, {found['tokens']:,} tokens)"
    notes = [f"note           {found['note']}"] if "note" in found else []
    if not dense_scores:
        return [f"perplexity     {found['value']:.3f} {what}", *notes]
    dense = dense_scores["perplexity"]["value"]
    lines = [f"perplexity     dense {dense:.3f}, pruned {found['value']:.3f} = {found['value'] / dense:.2f} x {what}"]
    if "fidelity" in scores:
        near = scores["fidelity"]
        lines.append(
            f"fidelity       KL {near['kl']:.4f}, Jensen-Shannon {near['js']:.4f} nats, same likeliest token {near['top1']:.1%}"
        )
    return lines + notes
