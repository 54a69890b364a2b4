"""The pruning stage: from a model and a calibration set to a verified folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.allocation.base import Allocation
from secateur.masks.pattern import Pattern, parse_pattern, resolve_sparsity
from secateur.methods.base import Method
from secateur.models.batches import Batch, make_batches
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import pick_device, pick_dtype
from secateur.models.skeleton import Skeleton
from secateur.pipeline.calibrate import digest_of_set, load_set
from secateur.pipeline.components import ResolvedModel, make_allocation, make_method
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import build, check_space, digest_of, refuse_taken
from secateur.pruning.loop import PruningPlan, plan_pruning, prune_blocks
from secateur.pruning.records import BlockJournal, LinearRecord, achieved_sparsity
from secateur.pruning.verify import verify

FORMAT = 1
RECORDS = "pruning.jsonl"  # one of the checkpoint's OWN_FILES: never copied from an already pruned model


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
        return bool(self.method.statistics())

    def spec(self, calibration: Path | None) -> dict[str, Any]:
        """What decides the output."""
        spec = self.recipe.pruning
        return {
            "stage": "pruning",
            "format": FORMAT,
            "model": self.model.digest,
            "calibration": digest_of_set(calibration) if calibration else None,
            "dtype": self.recipe.dtype,
            "method": spec.method.model_dump(),
            "pattern": str(self.pattern),
            "sparsity": self.sparsity,
            "allocation": spec.allocation.model_dump(),
            "skip": spec.skip,
            "head": spec.head,
            "batch_size": spec.batch_size,
            "device": pick_device(self.recipe.device).partition(":")[0],
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
        return str(self.pattern).replace(":", "of") if self.pattern.structured else f"{self.sparsity * 100:g}pc"

    def run(self, final: Path, calibration: Path | None, reporter: Reporter) -> Path:
        """Prune into ``final`` unless it is there; returns ``final``. Raises ``VerificationError`` when what was saved
        does not read back as it should."""
        build(final, self.spec(calibration), lambda partial: self._make(partial, calibration, reporter))
        return final

    def _make(self, folder: Path, calibration: Path | None, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        batches: Sequence[Batch] = []
        if calibration:
            batches = make_batches([s.token_ids for s in load_set(calibration).samples], self.recipe.pruning.batch_size)
        with phases.phase("copy"):
            output = self._copy(folder)
        journal = BlockJournal(folder / RECORDS)
        with phases.phase("prune"):
            advance = reporter.advance("blocks")
            records = prune_blocks(self.skeleton, self.plan, batches, output, journal, advance)
        with phases.phase("verify"):
            verification = verify(self.model.folder, folder, records, self.pattern, self.plan.sparsities)
        return {
            "kind": "pruned",
            "model": {
                "name": self.model.name,
                "folder": str(self.model.folder.resolve()),
                "digest": self.model.digest,
                "revision": self.model.revision,
            },
            "recipe": self.recipe.model_dump(),
            "calibration": _calibration_facts(calibration),
            "sparsity": achieved_sparsity(records),
            "sparsity_of_all": verification.sparsity_of_all,
            "verification": asdict(verification),
            "weights": sum(record.weights for record in records),
            "pruned_weights": sum(record.pruned for record in records),
            "warnings": _warnings(records, self.method),
            "phases": phases.found,
            **environment(),
        }

    def _copy(self, folder: Path) -> Checkpoint:
        """The copy to patch. The records file is there only once the copy is whole."""
        if (folder / RECORDS).exists():
            return Checkpoint(folder)
        copy = self.skeleton.checkpoint.copy_to(folder)
        (folder / RECORDS).touch()
        return copy


def plan_prune(recipe: Recipe, model: ResolvedModel) -> PruningStage:
    """Resolve and check the pruning stage of a recipe. Raises on anything that is wrong with what was asked."""
    spec = recipe.pruning
    method, pattern, sparsity, allocation = check_request(recipe)
    skeleton = Skeleton(model.folder, pick_device(recipe.device), pick_dtype(recipe.dtype))
    plan = plan_pruning(skeleton, method, pattern, sparsity, allocation, spec.skip, spec.head)
    return PruningStage(recipe, model, method, pattern, sparsity, plan, skeleton)


def check_request(recipe: Recipe) -> tuple[Method, Pattern, float, Allocation]:
    """What can be checked of the pruning before there is a model: names, settings, pattern and sparsity."""
    spec = recipe.pruning
    pattern = parse_pattern(spec.pattern)
    sparsity = resolve_sparsity(pattern, spec.sparsity)
    return make_method(spec.method), pattern, sparsity, make_allocation(spec.allocation)


def _calibration_facts(calibration: Path | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    found = load_set(calibration)
    return {
        "folder": str(calibration.resolve()),
        "set_digest": found.digest,
        "samples": len(found.samples),
        "tokens": found.tokens,
    }


def _warnings(records: Sequence[LinearRecord], method: Method) -> list[str]:
    """What a user should know about the statistics: few tokens for their width, raised damping."""
    found = []
    asked = getattr(method, "damping", None)
    for record in records:
        if asked is not None and record.notes.get("damping", asked) > asked:
            found.append(
                f"{record.name}: its Gram matrix was singular; {record.notes['damping']:g} times its mean diagonal was added "
                f"instead of {asked:g} (condition {record.notes['condition']:.1e})."
            )
    few = [record for record in records if "condition" in record.notes and record.tokens < record.inputs]
    if few:
        found.append(
            f"{len(few)} linears have more inputs than calibration tokens (e.g. {few[0].name}: {few[0].inputs:,} inputs, "
            f"{few[0].tokens:,} tokens), so their Gram matrices are of low rank; use more samples."
        )
    return found
