"""Measuring models: what one evaluation computes, and what several of one dense model share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from secateur.calibration.sources.base import TextSource
from secateur.errors import ModelError
from secateur.evaluation.begin import BeginToken
from secateur.evaluation.capabilities import retention
from secateur.evaluation.fidelity import DenseLogits, Fidelity, read
from secateur.evaluation.perplexity import perplexity, perplexity_of
from secateur.evaluation.protocol import EvaluationText, Protocol, tokenise
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import EvaluationTask
from secateur.evaluation.writing import writing
from secateur.models.configuration import vocabulary_size
from secateur.models.layout import read_layout
from secateur.models.loading import load_model, load_tokenizer, pick_device, pick_dtype, settled_dtype
from secateur.models.locate import decides
from secateur.pipeline.components import ResolvedModel
from secateur.pipeline.provenance import Phases
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import file_digest

NO_TOKENIZER_FILES = {"config.json", "generation_config.json"}


@dataclass(frozen=True)
class Measurement:
    """What to measure of ``model``, resolved, and the dense model to compare it with, if any."""

    recipe: Recipe
    model: ResolvedModel
    dense: ResolvedModel | None
    source: TextSource
    protocol: Protocol
    begin: BeginToken
    limit: int | None
    spec: dict[str, Any]
    tasks: tuple[EvaluationTask, ...] = ()

    def evaluation_text(self) -> EvaluationText:
        """The windows or documents to score, tokenised."""
        # Blank rows count under concat (the original programs join them too), but are no documents.
        texts = [text for _, text in self.source.texts() if self.protocol.window or text.strip()]
        tokenizer = load_tokenizer(self.model.folder)
        found = tokenise(texts, tokenizer, self.protocol, self.model.positions, self.limit, self.begin)
        largest, vocabulary = (
            max(map(max, found.sequences)),
            vocabulary_size(self.model.folder),
        )
        if largest >= vocabulary:
            raise ModelError(
                f"The tokenizer of {self.model.name} makes the token {largest} of the text {self.source.name!r}, but the model has "
                f"only {vocabulary} tokens: they do not belong together. Put the model's own tokenizer files into its folder."
            )
        return found


class Evaluator:
    """Computes the scores of measurements. One that serves several keeps the dense model, the tokenised texts and
    tasks, and, where they take at most ``memory`` bytes in all, the dense model's logits over them; the scores are those
    that each alone would give.

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
        self, asked: Measurement, reporter: Reporter, phases: Phases, dense_scores: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The scores of ``asked``. ``dense_scores``: those of the dense model on the same tasks, for what is left of them."""
        spec = asked.recipe.evaluation
        with phases.phase("load"):
            model, text = self._model(asked), self._text(asked)
        scores: dict[str, Any] = {"text_cut": text.cut}
        if asked.dense is None:
            with phases.phase("perplexity"):
                progress = reporter.advance("perplexity")
                scores["perplexity"] = perplexity(model, text, asked.protocol, spec.batch_size, progress).scores()
        else:
            with phases.phase("fidelity"):
                near = self._logits(asked, ("text",), text.sequences)
                losses, found = read(model, near, reporter.advance("perplexity and fidelity"))
            scores["perplexity"] = perplexity_of(losses, text, asked.protocol).scores()
            scores["fidelity"] = asdict(found)
        scorer = self._scorer(asked, model)
        if asked.tasks:
            scores |= self._tasks(asked, scorer, reporter, phases)
        if asked.tasks and dense_scores:
            left = retention(scores["tasks"], dense_scores["tasks"])
            scores |= {"retention": left} if left else {}
        if spec.generations.count:
            with phases.phase("generation"):
                scorer.progress = reporter.advance("generation")
                wanted = spec.generations
                own = writing(
                    scorer, text.sequences, wanted.count, wanted.prompt_tokens, wanted.tokens, wanted.temperature
                ).scores()
            scores["generation"] = own | ({"dense": dense_scores["generation"]} if dense_scores else {})
        return scores

    def _tasks(
        self, asked: Measurement, scorer: Scorer, reporter: Reporter, phases: Phases
    ) -> dict[str, dict[str, Any]]:
        spec = asked.recipe.evaluation
        found: dict[str, Any] = {}
        near: dict[str, Fidelity] = {}
        for task in asked.tasks:
            with phases.phase(task.name):
                scorer.progress = reporter.advance(task.name)
                score = task.score(scorer)
                found[task.name] = score.scores(spec.confidence_bins)
                sequences = _read_texts(scorer, score.texts, spec.task_texts)
                if asked.dense is not None and sequences:
                    logits = self._logits(asked, ("task", task.name), sequences)
                    near[task.name] = read(scorer.model, logits)[1]
                    found[task.name]["fidelity"] = asdict(near[task.name])
        return {"tasks": found} | ({"task_fidelity": asdict(_together(list(near.values())))} if near else {})

    def _model(self, asked: Measurement) -> PreTrainedModel:
        if self._dense is not None and self._dense[0] == _key(asked, asked.model):
            return self._dense[1]
        return _load(asked, asked.model)

    def _dense_model(self, asked: Measurement) -> PreTrainedModel:
        assert asked.dense is not None
        key = _key(asked, asked.dense)
        if self._dense is None or self._dense[0] != key:
            self._dense = None
            for old in [key for key in self._kept if key[0] == "logits"]:
                del self._kept[old]
            self._dense = (key, _load(asked, asked.dense))
        return self._dense[1]

    def _text(self, asked: Measurement) -> EvaluationText:
        spec = asked.spec
        parts = (
            spec["text"],
            spec["text_fingerprint"],
            spec["protocol"],
            asked.begin,
            asked.limit,
            asked.model.positions,
        )
        key = ("text", *parts, _tokenizer_key(asked.model.folder))
        if key not in self._kept:
            self._kept[key] = asked.evaluation_text()
        return self._kept[key]

    def _logits(self, asked: Measurement, what: tuple[str, ...], sequences: Sequence[Sequence[int]]) -> DenseLogits:
        """The dense model's logits over ``sequences``: kept ones, as long as they are over the same."""
        size = asked.recipe.evaluation.batch_size
        model = self._dense_model(asked)
        key = ("logits", *what, size)
        old = self._kept.get(key)
        if old is not None and old.model is model and old.sequences == sequences:
            return old
        self._kept.pop(key, None)
        taken = sum(kept.bytes for name, kept in self._kept.items() if name[0] == "logits" and kept.keeps)
        self._kept[key] = DenseLogits(model, sequences, max(self.memory - taken, 0), size)
        return self._kept[key]

    def _scorer(self, asked: Measurement, model: PreTrainedModel) -> Scorer:
        size, bos = asked.recipe.evaluation.batch_size, asked.recipe.evaluation.bos
        key = ("scorer", bos, asked.model.positions, _tokenizer_key(asked.model.folder))
        if key not in self._kept:
            self._kept[key] = (load_tokenizer(asked.model.folder), {}, {})
        tokenizer, encodings, kept = self._kept[key]
        return Scorer(model, tokenizer, asked.model.positions, size, bos, encodings=encodings, kept=kept)


def _key(asked: Measurement, model: ResolvedModel) -> tuple[str, ...]:
    device = pick_device(asked.recipe.device)
    return (model.digest, device, settled_dtype(asked.recipe.evaluation.dtype, device))


def _load(asked: Measurement, model: ResolvedModel) -> PreTrainedModel:
    device = pick_device(asked.recipe.device)
    return load_model(model.folder, device, pick_dtype(asked.recipe.evaluation.dtype, device))


def _tokenizer_key(folder: Path) -> tuple[tuple[str, str], ...]:
    names = [name for name in read_layout(folder).others if decides(name) and name not in NO_TOKENIZER_FILES]
    return tuple((name, file_digest(folder / name)) for name in names)


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
