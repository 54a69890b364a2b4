"""Resolved stages by the parts of a recipe that decide them, so that many recipes that share parts are planned quickly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.models.loading import load_tokenizer
from secateur.pipeline.calibrate import check_set, existing_set, plan_calibration
from secateur.pipeline.calibration_stage import CalibrationStage
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluate import EvaluationStage, plan_evaluation
from secateur.pipeline.prune import PruningStage, check_request, plan_prune
from secateur.pipeline.recipe import Recipe

MODEL = ("model", "revision", "device", "dtype")


class Known:
    """Remembers what was resolved. What failed is not remembered: it is raised each time."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Any] = {}

    def model(self, recipe: Recipe) -> ResolvedModel:
        return self._once("model", recipe, MODEL[:2], lambda: resolve_model(recipe.model, recipe.revision))

    def check(self, recipe: Recipe) -> None:
        """Raise on what is wrong with the request itself (``check_request``)."""
        self._once("request", recipe, ("pruning", "calibration"), lambda: check_request(recipe))

    def pruning(self, recipe: Recipe) -> PruningStage:
        stage = self._once("pruning", recipe, (*MODEL, "pruning"), lambda: plan_prune(recipe, self.model(recipe)))
        return replace(stage, recipe=recipe)

    def existing(self, recipe: Recipe) -> Path | None:
        """The finished set that the recipe's source is, if it is one; raises unless it fits the model."""
        return self._once("existing", recipe, (*MODEL[:2], "calibration"), lambda: self._existing(recipe))

    def _existing(self, recipe: Recipe) -> Path | None:
        folder = existing_set(recipe.calibration.source)
        if folder is not None:
            check_set(folder, self.model(recipe))
        return folder

    def calibration(self, recipe: Recipe) -> CalibrationStage:
        """The stage of a set; it is planned once for all seeds."""
        fields = (*MODEL, "calibration")
        stage = self._once("calibration", recipe, fields, lambda: plan_calibration(recipe, self.model(recipe)))
        return replace(stage, recipe=recipe, spec=stage.spec | {"seed": recipe.seed})

    def evaluation(self, recipe: Recipe) -> EvaluationStage:
        """The evaluation of the dense model, whose settings those of the pruned ones are."""
        fields = (*MODEL, "evaluation")
        return self._once("evaluation", recipe, fields, lambda: self._evaluation(recipe))

    def _evaluation(self, recipe: Recipe) -> EvaluationStage:
        model = self.model(recipe)
        stage = plan_evaluation(recipe, model)
        load_tokenizer(model.folder)
        return stage

    def _once(self, what: str, recipe: Recipe, fields: tuple[str, ...], make: Callable[[], Any]) -> Any:
        key = what, json.dumps(recipe.model_dump(include=set(fields)), sort_keys=True)
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]
