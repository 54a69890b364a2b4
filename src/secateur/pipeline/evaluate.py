"""The evaluation stage: perplexity, tasks and writing of a model, and its fidelity to the dense one, as a scores file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.errors import ModelError, UsageError
from secateur.evaluation.begin import BeginToken
from secateur.evaluation.protocol import Protocol, parse_protocol
from secateur.evaluation.task import EvaluationTask
from secateur.models.checkpoint import Checkpoint
from secateur.models.configuration import vocabulary_size
from secateur.models.loading import check_loadable, load_tokenizer, pick_device, settled_dtype
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluation_tasks import plan_tasks
from secateur.pipeline.evaluator import Evaluator, Measurement
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import EvaluationSpec, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of, finished, read_manifest, waiting

FORMAT = 1
SCORES = "scores.json"
REFERENCE_WINDOWS = 128  # of the 1,121 windows of held-out library text: a minute instead of ten
REFERENCE_TEXT, HUB_TEXT = "stdlib-heldout", "Salesforce/wikitext:wikitext-2-raw-v1"


@dataclass(frozen=True)
class EvaluationStage(Measurement):
    """A measurement as a folder of scores. ``reference``: the stage of the dense model on the same ``tasks`` and
    generations, which says what there was to lose."""

    reference: EvaluationStage | None = None

    def folder(self, store: Path) -> Path:
        return store / "evaluation" / digest_of(self.spec)[:DIGEST_SHOWN]

    def run(self, final: Path, reporter: Reporter, evaluator: Evaluator | None = None) -> dict[str, Any]:
        """The scores, computed unless ``final`` has them; the dense model's, where they are needed, stand beside it.

        ``evaluator``: one that serves several stages, to load and compute what they share once.
        """
        if not finished(final, self.spec):
            with waiting(reporter.note):
                build(final, self.spec, lambda partial: self._make(partial, final, reporter, evaluator or Evaluator()))
        return json.loads((final / SCORES).read_text(encoding="utf-8"))

    def _make(self, folder: Path, final: Path, reporter: Reporter, evaluator: Evaluator) -> dict[str, Any]:
        phases = Phases()
        dense_scores = None
        if self.reference is not None:
            place = final.absolute().parent / digest_of(self.reference.spec)[:DIGEST_SHOWN]
            dense_scores = self.reference.run(place, reporter, evaluator)
        scores = evaluator.scores(self, reporter, phases, dense_scores)
        (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        return {"kind": "evaluation", "phases": phases.found, "text": self.source.name, **environment()}


def plan_evaluation(
    recipe: Recipe,
    model: ResolvedModel,
    dense: ResolvedModel | None = None,
    text_source: Callable[[str, str, str], TextSource] = resolve_text_source,
) -> EvaluationStage:
    """Resolve and check the evaluation of ``model``; with ``dense``, also its fidelity to that.

    Where the recipe leaves it open, the text is the held-out library files for the bundled model and what was pruned
    from it, WikiText-2 for others; the protocol concat-2048, or as many positions as the model has. A protocol of a name
    brings its own text. The begin token stands in every window if the tokenizer puts one before text; not for the bundled
    model, which was trained on files joined and cut anywhere. ``text_source`` finds a text by its name, key and split.
    """
    spec = recipe.evaluation
    origin = dense or dense_model_of(model) or model
    protocol = parse_protocol(spec.protocol or f"concat-{model.length}")
    name = spec.text or protocol.text or (REFERENCE_TEXT if origin.is_reference else HUB_TEXT)
    split = spec.split if spec.text or not protocol.text else protocol.split
    own = spec.text is None and protocol.text is None and origin.is_reference
    limit = spec.limit or (REFERENCE_WINDOWS if own else None)
    source = text_source(name, spec.text_key, split)
    begin, as_tokenized = _begin(spec, model, protocol, origin.is_reference)
    if dense is not None and _vocabulary(dense) != _vocabulary(model):
        raise UsageError(
            f"{model.name} has {_vocabulary(model)} tokens and {dense.name} has {_vocabulary(dense)}: models of different "
            "vocabularies cannot be compared token by token."
        )
    differs = dense is not None and dense.digest != model.digest
    compared = dense if spec.fidelity and differs else None
    for one in (model, *([compared] if compared else [])):
        check_loadable(one.folder)
    resolved = {
        "stage": "evaluation",
        "format": FORMAT,
        "model": model.digest,
        "dense": compared.digest if compared else None,
        "text": name,
        "text_fingerprint": source.fingerprint(),
        "protocol": str(protocol),
        "limit": limit,
        "dtype": settled_dtype(spec.dtype, pick_device(recipe.device).partition(":")[0]),
    }
    tasks = plan_tasks(spec)
    reference = None
    if dense is not None and differs and (tasks or spec.generations.count):
        reference = plan_evaluation(recipe, dense, None, text_source)
    resolved |= {"bos": begin.place} if begin.place != as_tokenized else {}
    resolved |= _more(spec, tasks, reference)
    return EvaluationStage(recipe, model, compared, source, protocol, begin, limit, resolved, tasks, reference)


def _begin(spec: EvaluationSpec, model: ResolvedModel, protocol: Protocol, bundled: bool) -> tuple[BeginToken, str]:
    """Where the begin token stands, and where the tokenizer alone would put it. Raises ``UsageError`` for a begin token
    that is asked for and cannot be had."""
    tokenizer = load_tokenizer(model.folder)
    found, vocabulary = protocol.begin(spec.bos, tokenizer, bundled), _vocabulary(model)
    if found.token is not None and found.token >= vocabulary:
        raise UsageError(
            f"The begin token of the tokenizer of {model.name} is {found.token}, but the model has only {vocabulary} tokens; "
            "set evaluation.bos to none, or put the model's own tokenizer files into its folder."
        )
    return found, protocol.begin("first", tokenizer).place


def _more(spec: EvaluationSpec, tasks: Sequence[EvaluationTask], reference: EvaluationStage | None) -> dict[str, Any]:
    """What is in a spec only where it is asked for, so that plain evaluations keep their digests."""
    found: dict[str, Any] = {"batch_size": spec.batch_size} if spec.batch_size else {}
    if tasks:
        found |= {"tasks": [task.spec() for task in tasks], "confidence_bins": spec.confidence_bins}
        found |= {"task_texts": spec.task_texts}
        found |= {"tasks_bos": spec.bos} if spec.bos in ("every", "none") else {}
    if spec.generations.count:
        found |= {"generations": spec.generations.model_dump()}
    return found | ({"reference": digest_of(reference.spec)} if reference else {})


def _vocabulary(model: ResolvedModel) -> int:
    return vocabulary_size(model.folder)


def dense_model_of(model: ResolvedModel) -> ResolvedModel | None:
    """The dense model that a pruned folder was made from, if it can still be found and is the same."""
    manifest = read_manifest(model.folder)
    if not manifest or manifest.get("kind") != "pruned":
        return None
    origin = manifest["model"]
    name = origin["folder"] if Path(origin["folder"]).is_dir() and origin["name"] != "reference" else origin["name"]
    try:
        found = resolve_model(name, origin["revision"])
    except ModelError:
        return None
    return found if found.digest == origin["digest"] else None


def memory_needed(model: Path, dtype: str, models: int) -> int:
    """Bytes that ``models`` copies of a model take while they are evaluated in ``dtype``, which is settled."""
    checkpoint = Checkpoint(model)
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype)
    return models * (checkpoint.parameters * width if width else checkpoint.bytes)
