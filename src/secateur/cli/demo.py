"""secateur demo"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Common

SOURCES = {
    "random-tokens": "random tokens",
    "prose": "English prose about Python",
    "site-packages": "other people's Python",
    "stdlib-train": "its own training files",
    "self": "text it wrote itself",
}
PROMPT = "    def close(self):\n        if self._file is not None:"
CONTINUATION_TOKENS = 48


def demo(
    *,
    method: Annotated[str, Parameter(help="The method that is calibrated.")] = "sparsegpt",
    pattern: Annotated[str, Parameter(help="The sparsity pattern.")] = "2:4",
    sparsity: Annotated[float | None, Parameter(help="Share of weights to set to zero.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """The main job on the bundled model, offline, as one table.

    Prunes the reference model without data (magnitude), then with calibration data of five kinds, the last of which
    it writes itself, and measures each on held-out files.
    """
    from secateur import api
    from secateur.cli.console import print_json, print_line

    overrides = {"pruning.pattern": pattern, "pruning.sparsity": sparsity, "evaluation.fidelity": False}
    overrides |= {
        "evaluation.enabled": True,
        "evaluation.limit": 64,
        "calibration.samples": 64,
        "calibration.generation.batch_size": 80,
    }
    runs = [("magnitude", "magnitude", "no data", {})]
    runs += [(source, method, words, {"calibration.source": source}) for source, words in SOURCES.items()]
    if common.dry_run:
        for name, used, _, own in runs:
            api.plan_run(common.load("reference", overrides | own | {"pruning.method": used}))
            print_line(f"{used} {pattern}, calibrated on {name}: would be run and measured")
        return 0
    rows: list[dict[str, Any]] = []
    result = None
    with common.reporter() as reporter:
        for name, used, words, own in runs:
            reporter.note(f"{used}, {words}")
            recipe = common.load("reference", overrides | own | {"pruning.method": used})
            started = time.monotonic()
            result = api.prune(recipe, None, common.store, reporter)
            rows.append(_row(name, f"{used}, {words}", result, time.monotonic() - started))
    assert result is not None
    dense = result.dense_scores["perplexity"]
    continuations = _continue(result.folder)
    if common.json:
        print_json({"dense": dense, "rows": rows, "folder": str(result.folder), "continuations": continuations})
        return 0
    _print(rows, dense, result, continuations, pattern)
    return 0


def _row(name: str, words: str, result: Any, seconds: float) -> dict[str, Any]:
    value, dense = result.scores["perplexity"]["value"], result.dense_scores["perplexity"]["value"]
    return {
        "source": name,
        "what": words,
        "perplexity": value,
        "ratio": value / dense,
        "sparsity": result.manifest["sparsity"],
        "seconds": seconds,
    }


def _print(rows: list[dict[str, Any]], dense: Any, result: Any, continuations: dict[str, str], pattern: str) -> None:
    from secateur.cli.console import print_line, print_table
    from secateur.evaluation.protocol import said

    print_line(
        f"Held-out perplexity of the bundled model ({said(dense)}, {dense['tokens']:,} tokens), pruned to {pattern}:"
    )
    print_line()
    table = [["dense", f"{dense['value']:.2f}", "1.00 x", "0.0%", ""]]
    for row in rows:
        numbers = [
            f"{row['perplexity']:.2f}",
            f"{row['ratio']:.2f} x",
            f"{row['sparsity']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        table.append([row["what"], *numbers])
    print_table(["pruned by, calibrated on", "perplexity", "to dense", "sparsity", "seconds"], table)
    print_line()
    print_line(
        "One seed each: differences of a percent or two are noise. Seconds include making the data and measuring."
    )
    print_line(f"The model that pruned itself: {result.folder}")
    for name, text in continuations.items():
        print_line()
        print_line(f"The prompt (two lines) as the {name} model continues it:")
        print_line("    " + text.strip("\n").replace("\n", "\n    "))


def _continue(folder: Path) -> dict[str, str]:
    """The likeliest continuation of one prompt by the dense and by the pruned model."""
    import torch

    from secateur.models.loading import load_model, load_tokenizer
    from secateur.models.locate import reference_folder

    found = {}
    for name, place in (("dense", reference_folder()), ("pruned", folder)):
        tokenizer = load_tokenizer(place)
        inputs = tokenizer(PROMPT, return_tensors="pt")
        with torch.inference_mode():
            generate: Any = load_model(place).generate
            ids = generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=CONTINUATION_TOKENS,
                do_sample=False,
                repetition_penalty=1.1,
            )
        found[name] = tokenizer.decode(ids[0], skip_special_tokens=True)
    return found
