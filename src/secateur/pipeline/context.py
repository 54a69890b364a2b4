"""What filters, selections and diagnoses may ask, answered with the model that the set is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.generation.engine import Engine
from secateur.generation.transformers_engine import TransformersEngine
from secateur.models.begin import Begin, begin_token
from secateur.models.configuration import max_positions
from secateur.models.loading import load_model, load_tokenizer, pick_device, pick_dtype
from secateur.models.locate import locate_model
from secateur.models.measures.gradients import adapter_gradients
from secateur.models.measures.pooled import pooled_inputs
from secateur.models.measures.surprise import min_k
from secateur.pipeline.components import make_engine
from secateur.pipeline.recipe import Recipe

Measure = Callable[[Sequence[tuple[int, ...]]], Any]


class ModelContext(Context):
    """``recipe`` says where models run and which engine writes; ``folder`` is the model's."""

    def __init__(self, recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.folder = recipe, folder
        self.tokenizer = self._tokenizer = tokenizer
        self.seed = recipe.seed
        self.begin = Begin(begin_token(tokenizer), max_positions(folder))
        self._device, self._dtype = pick_device(recipe.device), recipe.dtype
        self._logprobs: dict[tuple[str | None, tuple[int, ...]], float] = {}
        self._measured: dict[tuple[Any, ...], dict[tuple[int, ...], Any]] = {}
        self._others: dict[str, tuple[TransformersEngine, PreTrainedTokenizerBase]] = {}

    @cached_property
    def engine(self) -> Engine:
        """The engine that writes, with the model loaded."""
        return make_engine(self.recipe).open(self.folder, self._device, self._dtype)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model itself, for what an engine does not measure."""
        if "engine" in self.__dict__ and isinstance(self.engine, TransformersEngine):
            return self.engine.model
        return load_model(self.folder, self._device, pick_dtype(self._dtype, self._device))

    def texts(self, samples: Sequence[Sample]) -> list[str]:
        ids = [list(sample.token_ids) for sample in samples]
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []

    def source_texts(self, source: str) -> Iterator[str]:
        spec = self.recipe.calibration
        return (text for _, text in resolve_text_source(source, spec.text_key).texts())

    def mean_logprobs(self, samples: Sequence[Sample], model: str | None = None) -> list[float]:
        for sample in samples:
            if model is None and sample.mean_logprob is not None:
                self._logprobs[model, sample.token_ids] = sample.mean_logprob
        unknown = [sample for sample in samples if (model, sample.token_ids) not in self._logprobs]
        if unknown:
            engine, sequences = self._reading(unknown, model)
            for sample, score in zip(unknown, engine.score(sequences), strict=True):
                self._logprobs[model, sample.token_ids] = score
        return [self._logprobs[model, sample.token_ids] for sample in samples]

    def counted(self, sample: Sample) -> int:
        return len(self.begin.before(sample.token_ids)) - 1

    def scored(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the log-probabilities that something asked for."""
        found = [(sample, self._logprobs.get((None, sample.token_ids))) for sample in samples]
        return [sample if score is None else sample.scored(score) for sample, score in found]

    def _reading(self, samples: Sequence[Sample], model: str | None) -> tuple[Engine, list[Sequence[int]]]:
        """The engine of a model, and the samples as that model's tokens."""
        if model is None:
            return self.engine, [self.begin.before(sample.token_ids) for sample in samples]
        if model not in self._others:
            folder = locate_model(model)
            other = TransformersEngine(load_model(folder, self._device, pick_dtype(self._dtype, self._device)))
            self._others[model] = other, load_tokenizer(folder)
        engine, tokenizer = self._others[model]
        return engine, [tokenizer(text)["input_ids"] for text in self.texts(samples)]

    def min_k(self, samples: Sequence[Sample], share: float, plus: bool = True) -> list[float]:
        return self._each(("min-k", share, plus), samples, lambda ids: min_k(self.model, self._begun(ids), share, plus))

    def activations(self, samples: Sequence[Sample], dimensions: int) -> np.ndarray:
        key = ("activations", dimensions)
        return np.stack(self._each(key, samples, lambda ids: pooled_inputs(self.model, ids, dimensions, self.seed)))

    def gradients(self, samples: Sequence[Sample], dimensions: int, adam: bool) -> np.ndarray:
        # Adam's step for one sample depends on all of them.
        together = tuple(sample.token_ids for sample in samples) if adam else None
        key = ("gradients", dimensions, together)
        return np.stack(
            self._each(
                key, samples, lambda ids: adapter_gradients(self.model, self._begun(ids), dimensions, self.seed, adam)
            )
        )

    def _begun(self, sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [self.begin.before(ids) for ids in sequences]

    def _each(self, key: tuple[Any, ...], samples: Sequence[Sample], measure: Measure) -> list[Any]:
        """One value a sample; ``measure`` is asked for those that are not known yet."""
        known = self._measured.setdefault(key, {})
        unknown = [sample.token_ids for sample in samples if sample.token_ids not in known]
        if unknown:
            known.update(zip(unknown, measure(unknown), strict=True))
        return [known[sample.token_ids] for sample in samples]
