"""How many workers this machine has room for."""

from __future__ import annotations

from secateur.models.loading import pick_device
from secateur.pipeline.evaluate import memory_needed
from secateur.studies.machine import cores, free_memory
from secateur.studies.plan import StudyPlan
from secateur.studies.price import peak_bytes, priced_alike

SHARE = 0.7
"""Of the memory that is free."""


def default_workers(plan: StudyPlan, tasks: int) -> int:
    """As many as there are cores, tasks, and room in memory for; one where a GPU is used, or memory is short."""
    if any(pick_device(work.cell.recipe.device).startswith("cuda") for work in plan.works.values()):
        return 1
    room = int(SHARE * free_memory() / max(1, heaviest(plan)))
    return max(1, min(cores(), tasks, room))


def heaviest(plan: StudyPlan) -> int:
    """Bytes of memory that the heaviest cell is expected to take, to prune or to evaluate."""
    found = [peak_bytes(work) for work in priced_alike(plan).values()]
    for work in plan.works.values():
        spec = work.cell.recipe.evaluation
        found.append(memory_needed(work.plan.model.folder, spec.dtype, 2 if spec.fidelity else 1))
    return max(found, default=0)
