"""Mixture weights found by trials on the reference model, and what they are worth on seeds the search did not use.

    python scripts/mixture_table.py --out docs/results/mixtures-reference

For each method: equal amounts of every source and each amount times and by 3, on every seed; the fit; its best weights;
then these against equal ones on fresh seeds. Trials that the store has are not run again, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from secateur import api
from secateur.models.loading import quiet_transformers
from secateur.pipeline.mixing import Mixture
from secateur.pipeline.mixing_plan import Search
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter

METHODS: dict[str, list[str]] = {
    "wanda 2:4": ["pruning.method=wanda", "pruning.pattern=2:4"],
    "sparsegpt 2:4": ["pruning.method=sparsegpt", "pruning.pattern=2:4"],
}
SOURCES = ["stdlib-train", "site-packages", "prose", "self"]
SETTINGS = ["calibration.length=256", "evaluation.protocol=concat-512"]


class Lines(Reporter):
    """Trials as lines; the steps inside them are not worth one."""

    def note(self, text: str) -> None:
        print("note:", text, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        if what in {"trials", "comparisons"}:
            print(f"{what}: {done} of {total}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--only", nargs="*", choices=list(METHODS), help="methods to run, of those in the table")
    parser.add_argument("--base", type=int, default=64, help="samples of the first trial")
    parser.add_argument("--samples", type=int, default=64, help="size of the set that the weights are for")
    parser.add_argument("--seeds", type=int, default=3, help="draws of every trial")
    parser.add_argument("--fresh", type=int, default=5, help="seeds of the comparison")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--store", type=Path, default=Path("secateur-store"))
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="further recipe settings")
    asked = parser.parse_args()
    quiet_transformers()
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, f"evaluation.limit={asked.windows}", *asked.more]
    search = Search(asked.samples, asked.base, seeds=asked.seeds, compare=asked.fresh)
    found: dict[str, Mixture] = {}
    for method in asked.only or METHODS:
        recipe = load_recipe(None, [*settings, *METHODS[method]], {"model": asked.model})
        print(method, flush=True)
        found[method] = api.find_mixture(recipe, asked.sources, search, asked.store, Lines())
        write(asked.out, found, [f"model={asked.model}", *settings], search)


def write(out: Path, found: dict[str, Mixture], settings: list[str], search: Search) -> None:
    """``table.md`` and ``mixtures.json`` of the methods that are done."""
    entries = {method: asdict(mixture) | {"folder": None} for method, mixture in found.items()}
    (out / "mixtures.json").write_text(json.dumps({"settings": settings, "mixtures": entries}, indent=1) + "\n")
    lines = [
        f"Weights of calibration sources for {search.samples} samples, found by trials around {search.base} samples on "
        f"{search.seeds} seeds (95 % over seeds drawn with replacement), and their log perplexity less that of equal "
        f"weights on {search.compare} other seeds (paired, 95 % interval, Student t).",
        "",
        f"Settings: `{' '.join(settings)}`",
        "",
    ]
    for method, mixture in found.items():
        lines += [*section(method, mixture), ""]
    (out / "table.md").write_text("\n".join(lines))
    print("\n".join(lines))


def section(method: str, mixture: Mixture) -> list[str]:
    lines = [f"**{method}**", "", "| source | weight | 95 % | samples | beta |", "|---|---|---|---|---|"]
    spans = mixture.intervals or [None] * len(mixture.sources)
    for name, weight, span, amount, beta in zip(
        mixture.sources, mixture.weights, spans, mixture.amounts, mixture.beta, strict=True
    ):
        interval = f"{span[0]:.2f} to {span[1]:.2f}" if span else ""
        lines.append(f"| {name} | {weight:.2f} | {interval} | {amount} | {beta:.4f} |")
    lines += [
        "",
        f"- {mixture.trials} trials, gamma {mixture.gamma:.2f}, residual {mixture.residual:.4f} nats; predicted gain "
        f"{mixture.gain:.4f} ± {mixture.noise:.4f} nats: {mixture.verdict}",
    ]
    if mixture.untried:
        lines.append(f"- outside the amounts tried: {', '.join(mixture.untried)}")
    tested = mixture.comparison
    if tested:
        lines.append(
            f"- found weights, fresh seeds: log perplexity {tested.difference:+.2%} ± {tested.half:.2%}: {tested.verdict}"
        )
    return lines


if __name__ == "__main__":
    main()
