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

    def load(self, model: str | None, overrides: Mapping[str, Any]) -> Any:
        """The recipe: its file (MODEL may be one), then the flags, then --set."""
        from secateur.pipeline.recipe_file import is_recipe, load_recipe

        name = self.recipe
        if model is not None and is_recipe(model):
            if name is not None:
                raise UsageError(f"Two recipes were given, {model} and {name}; give one.")
            name, model = model, None
        return load_recipe(name, self.set_, {"model": model, "device": self.device, "seed": self.seed, **overrides})
