"""The pruning stage: from a model and a calibration set to a verified folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.allocation.base import Allocation
from secateur.calibration.sample import Sample
from secateur.calibration.sources.resolve import SELF
from secateur.errors import RecipeError, UsageError
from secateur.masks.pattern import Pattern, parse_pattern, resolve_sparsity
from secateur.methods.base import Method
from secateur.models.loading import pick_device, pick_dtype, settled_dtype
from secateur.models.skeleton import Skeleton
from secateur.pipeline.calibrate import digest_of_set, existing_set, load_set
from secateur.pipeline.components import ResolvedModel, make_allocation, make_method
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.store import check_space, digest_of, refuse_taken
from secateur.pruning.plan import PruningPlan, check_permute, plan_pruning

FORMAT = 2


@dataclass(frozen=True)
class PruningStage:
    """The resolved stage: the plan fits the model, nothing is run."""

    recipe: Recipe
    model: ResolvedModel
    method: Method
    pattern: Pattern
    sparsity: float
    plan: PruningPlan
    skeleton: Skeleton

    @property
    def needs_data(self) -> bool:
        return bool(self.plan.statistics() or self.plan.allocation.statistics())

    def spec(self, calibration: Path | None) -> dict[str, Any]:
        """What decides the output."""
        spec = self.recipe.pruning
        weight = {} if spec.prompt_weight == 1 else {"prompt_weight": spec.prompt_weight}
        error = {"output_error": True} if spec.output_error else {}
        error |= {"include": spec.include} if spec.include else {}
        device = pick_device(self.recipe.device).partition(":")[0]
        return {
            **weight,
            **error,
            "stage": "pruning",
            "format": FORMAT,
            "model": self.model.digest,
            "calibration": digest_of_set(calibration) if calibration else None,
            "dtype": settled_dtype(self.recipe.dtype, device),
            "method": spec.method.model_dump(),
            "pattern": str(self.pattern),
            "sparsity": self.sparsity,
            "allocation": spec.allocation.model_dump(),
            "skip": spec.skip,
            "head": spec.head,
            "propagation": spec.propagation,
            "min_expert_tokens": spec.min_expert_tokens,
            "permute": spec.permute,
            "batch_size": spec.batch_size,
            "device": device,
        }

    def check_place(self, final: Path) -> None:
        """Raise ``StoreError`` when ``final`` is taken or its disk too small, before any calibration data is made."""
        known = {key: value for key, value in self.spec(None).items() if key != "calibration"}
        refuse_taken(final, known)
        if not final.exists():
            check_space(final, int(self.skeleton.checkpoint.bytes * 1.05) + 2**20)

    def folder(self, store: Path, calibration: Path | None) -> Path:
        name = f"{self.model.slug}-{self.recipe.pruning.method.name}-{self._amount()}"
        source = f"-{calibration.name.rpartition('-')[0]}" if calibration else ""
        return store / "pruned" / f"{name}{source}-{digest_of(self.spec(calibration))[:8]}"

    def _amount(self) -> str:
        return (
            str(self.pattern).replace(":", "of").replace(" ", "-")
            if self.pattern.structured
            else f"{self.sparsity * 100:g}pc"
        )


def plan_prune(recipe: Recipe, model: ResolvedModel) -> PruningStage:
    """Resolve and check the pruning stage of a recipe. Raises on anything that is wrong with what was asked."""
    spec = recipe.pruning
    method, pattern, sparsity, allocation = check_request(recipe)
    device = pick_device(recipe.device)
    skeleton = Skeleton(model.folder, device, pick_dtype(recipe.dtype, device))
    plan = plan_pruning(
        skeleton,
        method,
        pattern,
        sparsity,
        allocation,
        spec.skip,
        spec.head,
        spec.min_expert_tokens,
        spec.permute,
        spec.output_error,
        spec.include,
    )
    return PruningStage(recipe, model, method, pattern, sparsity, plan, skeleton)


def check_request(recipe: Recipe) -> tuple[Method, Pattern, float, Allocation]:
    """What can be checked of the pruning before there is a model: names, settings, pattern and sparsity."""
    spec = recipe.pruning
    pattern = parse_pattern(spec.pattern)
    sparsity = resolve_sparsity(pattern, spec.sparsity)
    if spec.permute:
        check_permute(pattern, spec.propagation)
    _check_prompts_to_come(recipe)
    return make_method(spec.method), pattern, sparsity, make_allocation(spec.allocation)


def _check_prompts_to_come(recipe: Recipe) -> None:
    """Raise ``UsageError`` for a prompt weight beside calibration data that will have no prompts."""
    weight, spec = recipe.pruning.prompt_weight, recipe.calibration
    if weight == 1:
        return
    existing = existing_set(spec.source)
    if existing is not None:
        check_prompts(load_set(existing).samples, existing, weight)
    elif spec.packing != "whole" or SELF not in [spec.source, *(part.source for part in spec.mixture)]:
        raise UsageError(
            f"pruning.prompt_weight is {weight:g}, but only samples that the model writes have a prompt, and only "
            f"calibration.packing=whole keeps it apart; found source {spec.source!r} and packing {spec.packing!r}. Set "
            "calibration.source=self and calibration.packing=whole, or leave the weight at 1."
        )


def check_prompts(samples: Sequence[Sample], folder: Path, weight: float) -> None:
    """Raise ``UsageError`` unless prompts can count ``weight`` in the statistics of the samples, which are of ``folder``."""
    if weight == 1:
        return
    prompts = sum(sample.prompt_tokens for sample in samples)
    if not prompts:
        raise UsageError(
            f"pruning.prompt_weight is {weight:g}, but none of the {len(samples)} samples of {folder} has a prompt. Make the "
            "set with calibration.packing=whole and a style that is given one (traces, chat, prefix), or leave the weight "
            "at 1."
        )
    if not weight and prompts == sum(len(sample.token_ids) for sample in samples):
        raise UsageError(
            f"pruning.prompt_weight is 0, but the {len(samples)} samples of {folder} are prompts and nothing else, so no "
            "token would count. Take longer samples (calibration.length), or a weight above 0."
        )


def refuse_unlike(recipes: Sequence[Recipe]) -> None:
    """Raise ``RecipeError`` unless the recipes can share one pass over one model's calibration data."""
    first = recipes[0].model_dump(exclude={"pruning", "evaluation"})
    for number, recipe in enumerate(recipes[1:], start=2):
        other = recipe.model_dump(exclude={"pruning", "evaluation"})
        differing = [key for key in first if first[key] != other[key]]
        if differing:
            raise RecipeError(
                f"Recipe {number} differs from the first in {', '.join(differing)}; recipes pruned together share all but "
                "pruning and evaluation. Prune them one after another."
            )
        for key in ("batch_size", "prompt_weight"):
            if getattr(recipe.pruning, key) != getattr(recipes[0].pruning, key):
                raise RecipeError(f"Recipes pruned together must have the same pruning.{key}.")
    specs = [recipe.pruning for recipe in recipes]
    modes = [spec.propagation for spec in specs if spec.permute or make_method(spec.method).statistics()]
    if len(modes) > 1 and set(modes) != {"dense"}:
        raise RecipeError(
            f"Recipes pruned together must have pruning.propagation dense, found {', '.join(modes)}: otherwise each would "
            "hand the next block other inputs. Set it, or prune them one after another."
        )


def refuse_same_place(stages: Sequence[PruningStage], outs: Sequence[Path | None]) -> None:
    """Raise ``RecipeError`` when two of the stages would make the same folder, in ``outs`` or in the store."""
    seen: dict[str, int] = {}
    for number, (stage, out) in enumerate(zip(stages, outs, strict=True), start=1):
        place = str(out.resolve()) if out else digest_of(stage.spec(None))
        first = seen.setdefault(place, number)
        if first != number:
            what = f"both be written to {out}" if out else "make the same pruned model"
            raise RecipeError(f"Recipes {first} and {number} would {what}: change one of them, or leave it out.")
