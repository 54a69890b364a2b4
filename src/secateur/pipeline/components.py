"""From names and settings in a recipe to the objects they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.allocation import ALLOCATIONS
from secateur.allocation.base import Allocation
from secateur.calibration.filters import FILTERS
from secateur.calibration.filters.base import Filter
from secateur.calibration.selection import SELECTIONS
from secateur.calibration.selection.base import Selection
from secateur.generation.engine import EngineSettings
from secateur.generation.engines import ENGINES
from secateur.generation.styles import STYLES
from secateur.generation.styles.base import Style
from secateur.methods import METHODS
from secateur.methods.base import Method
from secateur.models.checkpoint import Checkpoint
from secateur.models.configuration import max_positions
from secateur.models.loading import MAX_LENGTH
from secateur.models.locate import REFERENCE, decides, locate_model
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.store import digest_of, file_digest
from secateur.registry import Registry
from secateur.settings import make

GENERATED_FILTERS = (Named.model_validate({"name": "perplexity", "drop": 0.2}),)


def make_method(named: Named) -> Method:
    return _make(METHODS, named)


def make_allocation(named: Named) -> Allocation:
    return _make(ALLOCATIONS, named)


def make_filters(recipe: Recipe) -> list[Filter]:
    """The recipe's filters; where it leaves them open, the paper's for generated text and none for the rest."""
    return [_make(FILTERS, named) for named in filters_of(recipe)]


def make_selection(recipe: Recipe) -> Selection:
    return _make(SELECTIONS, recipe.calibration.selection)


def make_style(recipe: Recipe) -> Style:
    return _make(STYLES, recipe.calibration.generation.style)


def make_engine(recipe: Recipe) -> EngineSettings:
    return _make(ENGINES, recipe.calibration.generation.engine)


def filters_of(recipe: Recipe) -> list[Named]:
    if recipe.calibration.filters is not None:
        return recipe.calibration.filters
    own = any(
        name == "self" for name in (recipe.calibration.source, *(part.source for part in recipe.calibration.mixture))
    )
    return list(GENERATED_FILTERS) if own else []


def _make(registry: Registry, named: Named) -> Any:
    return make(registry, named.name, named.settings)


@dataclass(frozen=True)
class ResolvedModel:
    """A model by name, where its files are, and the digest of what decides its outputs."""

    name: str
    folder: Path
    digest: str
    positions: int | None

    @property
    def length(self) -> int:
        """The sample length to take where none is asked for."""
        return min(MAX_LENGTH, self.positions or MAX_LENGTH)

    @property
    def revision(self) -> str | None:
        """The commit of a model from the Hub; ``None`` for others."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @property
    def is_reference(self) -> bool:
        return self.name == REFERENCE

    @property
    def slug(self) -> str:
        """The name, fit for a folder's."""
        return (
            self.folder.name if self.folder.is_dir() and "/" not in self.name else self.name.strip("/").split("/")[-1]
        )


def resolve_model(name: str, revision: str | None = None) -> ResolvedModel:
    """Locate a model and digest its files. Raises ``ModelError`` when it is missing, damaged or incomplete."""
    folder = locate_model(name, revision)
    checkpoint = Checkpoint(folder)
    names = [*checkpoint.files, *filter(decides, checkpoint.layout.others)]
    digest = digest_of({file: file_digest(folder / file) for file in names})
    return ResolvedModel(name, folder, digest, max_positions(folder))
