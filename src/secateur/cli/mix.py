"""secateur mix"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secateur.cli.common import Common

if TYPE_CHECKING:
    from secateur.pipeline.mixing import Mixture, MixtureStage

FRESH_SEEDS = 5


def mix(
    model: Annotated[str | None, Parameter(help="A Hub id, a local folder, 'reference', or a recipe file.")] = None,
    *,
    source: Annotated[
        list[str] | None,
        Parameter(help="One of the sources to mix, self among them; repeat it for each.", negative=()),
    ] = None,
    samples: Annotated[int | None, Parameter(help="Size of the set that the weights are for.")] = None,
    base: Annotated[int | None, Parameter(help="Samples of the first trial; as many, at most 64, if left out.")] = None,
    seeds: Annotated[int, Parameter(help="Draws of every trial.")] = 3,
    text: Annotated[
        list[str] | None,
        Parameter(help="Validation text; if repeated, the loss is the mean.", negative=()),
    ] = None,
    compare: Annotated[
        bool, Parameter(help=f"Prune with these and with equal weights on {FRESH_SEEDS} fresh seeds.", negative=())
    ] = False,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Find the weights of a mixture of calibration sources by trials.

    Prunes with equal amounts, then with each source's amount three times larger and smaller, fits a power law to the
    validation losses, and says which weights it expects to be best at the asked size.
    """
    recipe = common.load(model, {}, "mix")
    from secateur.cli.console import print_json
    from secateur.pipeline.mixing import plan_mixture
    from secateur.pipeline.mixing_plan import Search

    search = Search(samples, base, seeds=seeds, compare=FRESH_SEEDS if compare else 0, texts=tuple(text or ()))
    with common.reporter() as reporter:
        stage = plan_mixture(recipe, source or (), search)
        if common.dry_run:
            _show_trials(stage, common)
            return 0
        found = stage.run(common.store, reporter)
    if common.json:
        print_json(asdict(found) | {"snippet": found.snippet()})
    else:
        _show(found)
    return 0


def _show_trials(stage: MixtureStage, common: Common) -> None:
    from secateur.cli.console import print_json, print_line, print_table

    names = [part.source for part in stage.parts]
    done = stage.done(common.store)
    if common.json:
        trials = [
            {"amounts": dict(zip(names, trial.amounts, strict=True)), "seed": trial.seed, "done": trial in done}
            for trial in stage.trials
        ]
        print_json({"trials": trials, "fresh": list(stage.fresh), "folder": str(stage.folder(common.store))})
        return
    rows = [
        [str(trial.seed), *map(str, trial.amounts), "done" if trial in done else "to run"] for trial in stage.trials
    ]
    print_table(["seed", *names, ""], rows, left=0)
    if stage.fresh:
        print_line(f"Then {2 * len(stage.fresh)} prunings of {stage.samples} samples on the seeds {list(stage.fresh)}.")


def _show(found: Mixture) -> None:
    from secateur.cli.console import print_line, print_table

    ranges = found.intervals or [None] * len(found.sources)
    rows = [
        [name, f"{weight:.3f}", f"{span[0]:.3f} - {span[1]:.3f}" if span else "", str(amount), f"{beta:.4g}"]
        for name, weight, span, amount, beta in zip(
            found.sources, found.weights, ranges, found.amounts, found.beta, strict=True
        )
    ]
    print_table(["source", "weight", "95 % over seeds", "samples", "beta"], rows)
    print_line()
    print_line(f"fit              {found.trials} trials, gamma {found.gamma:.3f}, residual {found.residual:.5f} nats")
    print_line(f"predicted loss   equal {found.loss_equal:.5f}, found {found.loss_found:.5f}")
    print_line(f"predicted gain   {found.gain:.5f} ± {found.noise:.5f} nats: {found.verdict}")
    if found.untried:
        print_line(f"extrapolated     the amounts of {', '.join(found.untried)} lie outside those tried")
    tested = found.comparison
    if tested:
        print_line(
            f"log perplexity   found less equal {tested.difference:+.5f} ± {tested.half:.5f} on {len(tested.seeds)} fresh "
            f"seeds: {tested.verdict}"
        )
    if found.verdict != "better":
        print_line("The gain does not exceed the noise of the fit: equal weights are as well founded.")
    print_line()
    print_line(found.snippet())
