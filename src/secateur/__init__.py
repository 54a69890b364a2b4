"""Secateur prunes large language models with calibration data that the model writes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.api import (
        Result,
        evaluate,
        export_set,
        find_mixture,
        generate,
        import_set,
        profile,
        prune,
        prune_together,
        recommend,
    )
    from secateur.pipeline.recipe import Recipe
    from secateur.pipeline.recipe_file import load_recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Result",
    "evaluate",
    "export_set",
    "find_mixture",
    "generate",
    "import_set",
    "load_recipe",
    "profile",
    "prune",
    "prune_together",
    "recommend",
]

_HOMES = {"Recipe": "secateur.pipeline.recipe", "load_recipe": "secateur.pipeline.recipe_file"}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: ``import secateur`` alone loads no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "secateur.api")), name)
