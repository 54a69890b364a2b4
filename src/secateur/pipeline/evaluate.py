"""The evaluation stage: perplexity of a model, and its fidelity to the dense one, as a scores file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.errors import ModelError, UsageError
from secateur.evaluation.fidelity import fidelity
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.protocol import EvaluationText, Protocol, parse_protocol, tokenise
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model, load_tokenizer, pick_device, pick_dtype
from secateur.models.skeleton import read_config
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of, read_manifest

FORMAT = 1
SCORES = "scores.json"
REFERENCE_WINDOWS = 128  # of the 1,121 windows of held-out library text: a minute instead of ten
REFERENCE_TEXT, HUB_TEXT = "stdlib-heldout", "Salesforce/wikitext:wikitext-2-raw-v1"


@dataclass(frozen=True)
class EvaluationStage:
    """The resolved stage for one model, and the dense one to compare it with, if any."""

    recipe: Recipe
    model: ResolvedModel
    dense: ResolvedModel | None
    source: TextSource
    protocol: Protocol
    limit: int | None
    spec: dict[str, Any]

    def folder(self, store: Path) -> Path:
        return store / "evaluation" / digest_of(self.spec)[:DIGEST_SHOWN]

    def run(self, final: Path, reporter: Reporter) -> dict[str, Any]:
        """The scores, computed unless ``final`` has them."""
        build(final, self.spec, lambda partial: self._make(partial, reporter))
        return json.loads((final / SCORES).read_text(encoding="utf-8"))

    def _make(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        spec = self.recipe.evaluation
        device, dtype = pick_device(self.recipe.device), pick_dtype(spec.dtype)
        with phases.phase("load"):
            model = load_model(self.model.folder, device, dtype)
            text = self.evaluation_text()
        scores: dict[str, Any] = {"text_cut": text.cut}
        with phases.phase("perplexity"):
            found = perplexity(model, text, self.protocol, progress=reporter.advance("perplexity"))
            scores["perplexity"] = asdict(found)
        if self.dense is not None:
            dense = load_model(self.dense.folder, device, dtype)
            with phases.phase("fidelity"):
                scores["fidelity"] = asdict(
                    fidelity(dense, model, text.sequences, progress=reporter.advance("fidelity"))
                )
        (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        return {"kind": "evaluation", "phases": phases.found, "text": self.source.name, **environment()}

    def evaluation_text(self) -> EvaluationText:
        """The windows or documents to score, tokenised."""
        # Blank rows count under concat (the original programs join them too), but are no documents.
        texts = [text for _, text in self.source.texts() if self.protocol.window or text.strip()]
        tokenizer = load_tokenizer(self.model.folder)
        return tokenise(texts, tokenizer, self.protocol, self.model.positions, self.limit)


def plan_evaluation(recipe: Recipe, model: ResolvedModel, dense: ResolvedModel | None = None) -> EvaluationStage:
    """Resolve and check the evaluation of ``model``; with ``dense``, also its fidelity to that.

    Where the recipe leaves it open, the text is the held-out library files for the bundled model and what was pruned
    from it, WikiText-2 for others; the protocol concat-2048, or as many positions as the model has.
    """
    spec = recipe.evaluation
    origin = dense or dense_model_of(model) or model
    name = spec.text or (REFERENCE_TEXT if origin.is_reference else HUB_TEXT)
    limit = spec.limit or (REFERENCE_WINDOWS if spec.text is None and origin.is_reference else None)
    source = resolve_text_source(name, spec.text_key, spec.split)
    protocol = parse_protocol(spec.protocol or f"concat-{model.length}")
    if dense is not None and _vocabulary(dense) != _vocabulary(model):
        raise UsageError(
            f"{model.name} has {_vocabulary(model)} tokens and {dense.name} has {_vocabulary(dense)}: models of different "
            "vocabularies cannot be compared token by token."
        )
    compared = dense if spec.fidelity and dense is not None and dense.digest != model.digest else None
    resolved = {
        "stage": "evaluation",
        "format": FORMAT,
        "model": model.digest,
        "dense": compared.digest if compared else None,
        "text": name,
        "text_fingerprint": source.fingerprint(),
        "protocol": str(protocol),
        "limit": limit,
        "dtype": spec.dtype,
    }
    return EvaluationStage(recipe, model, compared, source, protocol, limit, resolved)


def _vocabulary(model: ResolvedModel) -> int:
    return read_config(model.folder).get_text_config().vocab_size


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
    """Bytes that ``models`` copies of a model take while they are evaluated in ``dtype``."""
    checkpoint = Checkpoint(model)
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype)
    return models * (checkpoint.parameters * width if width else checkpoint.bytes)
