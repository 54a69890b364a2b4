"""Measuring models: what one evaluation computes, and what several of one dense model share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from secateur.evaluation.capabilities import retention
from secateur.evaluation.fidelity import DenseLogits, Fidelity, read
from secateur.evaluation.perplexity import perplexity, perplexity_of
from secateur.evaluation.protocol import EvaluationText
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.writing import writing
from secateur.models.loading import load_model, load_tokenizer, pick_device, pick_dtype
from secateur.pipeline.components import DECIDING_FILES, ResolvedModel
from secateur.pipeline.provenance import Phases
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import file_digest

if TYPE_CHECKING:
    from secateur.pipeline.evaluate import EvaluationStage

TOKENIZER_FILES = tuple(name for name in DECIDING_FILES if not name.startswith(("config", "generation_config")))


class Evaluator:
    """Computes the scores of evaluation stages. One that serves several keeps the dense model, the tokenised texts and
    tasks, and, where they take at most ``memory`` bytes in all, the dense model's logits over them; the scores are those
    that each stage alone would give.

    Not for several threads. ``close`` lets go of everything.
    """

    def __init__(self, memory: int = 0) -> None:
        self.memory = memory
        self._dense: tuple[tuple[str, ...], PreTrainedModel] | None = None
        self._kept: dict[tuple[Any, ...], Any] = {}

    def close(self) -> None:
        self._dense = None
        self._kept.clear()

    def scores(
        self, stage: EvaluationStage, reporter: Reporter, phases: Phases, dense_scores: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The scores of ``stage``. ``dense_scores``: those of the dense model on the same tasks, for what is left of them."""
        spec = stage.recipe.evaluation
        with phases.phase("load"):
            model, text = self._model(stage), self._text(stage)
        scores: dict[str, Any] = {"text_cut": text.cut}
        if stage.dense is None:
            with phases.phase("perplexity"):
                progress = reporter.advance("perplexity")
                scores["perplexity"] = asdict(perplexity(model, text, stage.protocol, spec.batch_size, progress))
        else:
            with phases.phase("fidelity"):
                near = self._logits(stage, ("text",), text.sequences)
                losses, found = read(model, near, reporter.advance("perplexity and fidelity"))
            scores["perplexity"] = asdict(perplexity_of(losses, text, stage.protocol))
            scores["fidelity"] = asdict(found)
        scorer = self._scorer(stage, model)
        if stage.tasks:
            scores |= self._tasks(stage, scorer, reporter, phases)
        if stage.tasks and dense_scores:
            left = retention(scores["tasks"], dense_scores["tasks"])
            scores |= {"retention": left} if left else {}
        if spec.generations.count:
            with phases.phase("generation"):
                scorer.progress = reporter.advance("generation")
                asked = spec.generations
                own = writing(
                    scorer, text.sequences, asked.count, asked.prompt_tokens, asked.tokens, asked.temperature
                ).scores()
            scores["generation"] = own | ({"dense": dense_scores["generation"]} if dense_scores else {})
        return scores

    def _tasks(
        self, stage: EvaluationStage, scorer: Scorer, reporter: Reporter, phases: Phases
    ) -> dict[str, dict[str, Any]]:
        spec = stage.recipe.evaluation
        found: dict[str, Any] = {}
        near: dict[str, Fidelity] = {}
        for task in stage.tasks:
            with phases.phase(task.name):
                scorer.progress = reporter.advance(task.name)
                score = task.score(scorer)
                found[task.name] = score.scores(spec.confidence_bins)
                sequences = _read_texts(scorer, score.texts, spec.task_texts)
                if stage.dense is not None and sequences:
                    logits = self._logits(stage, ("task", task.name), sequences)
                    near[task.name] = read(scorer.model, logits)[1]
                    found[task.name]["fidelity"] = asdict(near[task.name])
        return {"tasks": found} | ({"task_fidelity": asdict(_together(list(near.values())))} if near else {})

    def _model(self, stage: EvaluationStage) -> PreTrainedModel:
        if self._dense is not None and self._dense[0] == _key(stage, stage.model):
            return self._dense[1]
        return _load(stage, stage.model)

    def _dense_model(self, stage: EvaluationStage) -> PreTrainedModel:
        assert stage.dense is not None
        key = _key(stage, stage.dense)
        if self._dense is None or self._dense[0] != key:
            self._dense = None
            for old in [key for key in self._kept if key[0] == "logits"]:
                del self._kept[old]
            self._dense = (key, _load(stage, stage.dense))
        return self._dense[1]

    def _text(self, stage: EvaluationStage) -> EvaluationText:
        spec = stage.spec
        parts = (spec["text"], spec["text_fingerprint"], spec["protocol"], stage.limit, stage.model.positions)
        key = ("text", *parts, _tokenizer_key(stage.model.folder))
        if key not in self._kept:
            self._kept[key] = stage.evaluation_text()
        return self._kept[key]

    def _logits(self, stage: EvaluationStage, what: tuple[str, ...], sequences: Sequence[Sequence[int]]) -> DenseLogits:
        """The dense model's logits over ``sequences``: kept ones, as long as they are over the same."""
        size = stage.recipe.evaluation.batch_size
        model = self._dense_model(stage)
        key = ("logits", *what, size)
        old = self._kept.get(key)
        if old is not None and old.model is model and old.sequences == sequences:
            return old
        self._kept.pop(key, None)
        taken = sum(kept.bytes for name, kept in self._kept.items() if name[0] == "logits" and kept.keeps)
        self._kept[key] = DenseLogits(model, sequences, max(self.memory - taken, 0), size)
        return self._kept[key]

    def _scorer(self, stage: EvaluationStage, model: PreTrainedModel) -> Scorer:
        key = ("scorer", stage.model.positions, _tokenizer_key(stage.model.folder))
        if key not in self._kept:
            self._kept[key] = (load_tokenizer(stage.model.folder), {}, {})
        tokenizer, encodings, kept = self._kept[key]
        size = stage.recipe.evaluation.batch_size
        return Scorer(model, tokenizer, stage.model.positions, size, encodings=encodings, kept=kept)


def _key(stage: EvaluationStage, model: ResolvedModel) -> tuple[str, ...]:
    return (model.digest, pick_device(stage.recipe.device), stage.recipe.evaluation.dtype)


def _load(stage: EvaluationStage, model: ResolvedModel) -> PreTrainedModel:
    return load_model(model.folder, pick_device(stage.recipe.device), pick_dtype(stage.recipe.evaluation.dtype))


def _tokenizer_key(folder: Path) -> tuple[tuple[str, str], ...]:
    return tuple((name, file_digest(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file())


def _read_texts(scorer: Scorer, texts: Sequence[str], most: int) -> tuple[tuple[int, ...], ...]:
    """At most ``most`` of ``texts``, evenly spread, as the model reads them from the beginning, cut at its positions."""
    count = min(most, len(texts))
    chosen = [texts[index * len(texts) // count] for index in range(count)]
    rows = (scorer.begun(text)[: scorer.positions] for text in chosen)
    return tuple(row for row in rows if len(row) >= 2)


def _together(parts: Sequence[Fidelity]) -> Fidelity:
    """Fidelity over the tokens of all ``parts``."""
    tokens = sum(part.tokens for part in parts)
    kl, js, top1 = (sum(getattr(part, name) * part.tokens for part in parts) / tokens for name in ("kl", "js", "top1"))
    return Fidelity(kl, js, top1, tokens)
