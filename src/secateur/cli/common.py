"""The flags that every command takes, and the recipe they make together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.errors import UsageError
from secateur.pipeline.store import DEFAULT_STORE


@Parameter(name="*")
@dataclass
class Output:
    """Flags of every command."""

    store: Annotated[Path, Parameter(help="Where results are kept and found again.", env_var="SECATEUR_STORE")] = Path(
        DEFAULT_STORE
    )
    json: Annotated[bool, Parameter(help="The result as JSON on stdout.", negative=())] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], help="No progress.", negative=())] = False
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Every step as a line.", negative=())] = False

    @contextmanager
    def reporter(self) -> Iterator[Any]:
        """A console reporter, with transformers' own output silenced."""
        from secateur.cli.console import ConsoleReporter
        from secateur.models.loading import quiet_transformers

        quiet_transformers()
        with ConsoleReporter(self.quiet, self.verbose) as reporter:
            yield reporter


@Parameter(name="*")
@dataclass
class Common(Output):
    """Flags of every command that runs something."""

    recipe: Annotated[
        str | None, Parameter(help="A recipe file, or the name of a bundled one (secateur ls recipes).")
    ] = None
    set_: Annotated[
        list[str], Parameter(name="--set", help="Any recipe value as key.path=value; may be repeated.", negative=())
    ] = field(default_factory=list)
    device: Annotated[str | None, Parameter(help="auto, cpu, cuda, cuda:1, ...")] = None
    seed: Annotated[int | None, Parameter(help="Decides the calibration draw.")] = None
    dry_run: Annotated[bool, Parameter(help="Check everything and say what would be done.", negative=())] = False

    def load(self, model: str | None, overrides: Mapping[str, Any], command: str | None = None) -> Any:
        """The recipe: its file (MODEL may be one), then the flags, then --set. ``command``: one that cannot do without a
        model; raises ``UsageError`` if none is named."""
        from secateur.pipeline.recipe_file import is_recipe, load_recipe

        name = self.recipe
        if model is not None and is_recipe(model):
            if name is not None:
                raise UsageError(f"Two recipes were given, {model} and {name}; give one.")
            name, model = model, None
        flags = {"model": model, "device": self.device, "seed": self.seed}
        recipe = load_recipe(name, self.set_, {**flags, **overrides})
        # A file of one's own may leave the model at its default; a command alone would begin a long run nobody asked for.
        if command and "model" not in recipe.model_fields_set and not (name and is_recipe(name)):
            none = f" The recipe {name!r} names none." if name else ""
            raise UsageError(
                f"Which model?{none} `secateur {command} reference` takes the bundled one; or give a folder, a Hub id such as "
                "Qwen/Qwen3-0.6B, or a recipe file."
            )
        return recipe


def check_evaluation_text(recipe: Any) -> None:
    """Raise, saying which text it is, when the one to measure on cannot be had: planning knows texts only by name."""
    from secateur.calibration.sources.resolve import resolve_text_source

    spec = recipe.evaluation
    if spec.text is not None:
        resolve_text_source(spec.text, spec.text_key, spec.split, use="the text to measure on (evaluation.text)")
