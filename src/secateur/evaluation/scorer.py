"""What tasks ask of a model: log-likelihoods of continuations, and continuations themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.calibration.sample import Sample
from secateur.errors import ModelError
from secateur.evaluation.begin import Choice, put_by_hand
from secateur.generation.engine import Sampling, batch_seed
from secateur.generation.transformers_engine import TransformersEngine
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, following_logits

GENERATED_AT_ONCE = 32

Kept = TypeVar("Kept")

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""The token ids of a context and of what follows it."""


@dataclass
class Scorer:
    """A model and its tokenizer, ready for tasks. ``positions``: what the model was made for; longer inputs lose their
    beginning, and ``cut`` counts them. ``batch_size`` ``None``: as many as fit (``scoring_batch``). ``bos``: whether texts begin
    with the begin token: ``none`` and ``every`` say so, else it is the tokenizer's own choice."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    positions: int | None = None
    batch_size: int | None = None
    bos: Choice = "auto"
    progress: Callable[[int, int], None] = lambda done, total: None
    encodings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Texts that were tokenised, shared by scorers of the same tokenizer."""
    cut: int = 0
    largest_batch: int = 0
    """The most inputs that went through the model at once, where ``batch_size`` leaves it open."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What tasks read or made once, shared by scorers of the same tokenizer."""

    @property
    def prefix(self) -> int:
        """The token that stands where there is no context: begin of text, else end of text, as lm-eval has it."""
        for found in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(found, int):
                return found
        raise ModelError(
            "The tokenizer has neither a begin nor an end token, so a text without context cannot be scored. Name one in "
            "the model's tokenizer_config.json."
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of ``text`` without special tokens added."""
        found = self.encodings.get(text)
        if found is None:
            found = self.encodings[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return found

    def special(self, text: str) -> tuple[int, ...]:
        """The ids of ``text`` with the special tokens that the tokenizer adds, or as ``bos`` says."""
        if self.bos == "none":
            return self.encode(text)
        ids = tuple(self.tokenizer.encode(text))
        return ids if self._by_hand is None or ids[:1] == (self._by_hand,) else (self._by_hand, *ids)

    @cached_property
    def _by_hand(self) -> int | None:
        return put_by_hand(self.bos, self.tokenizer)

    def begun(self, text: str) -> tuple[int, ...]:
        """The ids of ``text`` as a context: ``special``, and at least one."""
        return self.special(text) or (self.prefix,)

    def logprobs(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each pair: the log-probability in nats of the continuation after the context, and whether every token of it
        is the likeliest one. Contexts and continuations have at least one token.

        Each distinct input goes through the model once, the longest first; choices of one token share theirs.
        """
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            whole = context + continuation
            if self.positions and len(whole) > self.positions + 1:
                self.cut += 1
                whole = whole[-(self.positions + 1) :]
            inputs.setdefault(whole[:-1], []).append(index)
        ordered = sorted(inputs, key=len, reverse=True)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for start, size in self._pieces(ordered):
            piece = ordered[start : start + size]
            logits = following_logits(self.model, make_batches(piece, size)[0])
            for row, ids in enumerate(piece):
                for index in inputs[ids]:
                    found[index] = _logprob(logits[row, : len(ids)], pairs[index][1][-len(ids) :])
            self.progress(start + len(piece), len(ordered))
        return found

    def _pieces(self, ordered: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Start and size of each batch: inputs of falling length, so later batches may hold more."""
        pieces, start = [], 0
        while start < len(ordered):
            size = self.batch_size or default_batch(self.model, [ordered[start]])
            self.largest_batch = max(self.largest_batch, size)
            pieces.append((start, size))
            start += size
        return pieces

    def write(self, prompts: Sequence[Sequence[int]], tokens: int, sampling: Sampling, seed: int) -> list[Sample]:
        """Continuations of ``prompts`` by at most ``tokens`` tokens, by the transformers engine; prompts that leave no
        room for them lose their beginning."""
        room = (self.positions - tokens) if self.positions else None
        if room is not None and room < 1:
            raise ModelError(
                f"The model was made for {self.positions} positions, which leaves no room to write {tokens} tokens; ask for "
                "fewer."
            )
        short = [tuple(prompt)[-room:] if room else tuple(prompt) for prompt in prompts]
        own = self.model.generation_config  # the engine takes the end tokens from it, then clears it
        engine = TransformersEngine(self.model)
        found: list[Sample] = []
        size = min(self.batch_size or GENERATED_AT_ONCE, GENERATED_AT_ONCE)
        try:
            for number, start in enumerate(range(0, len(short), size)):
                batch = short[start : start + size]
                longest = max(map(len, batch))
                found += engine.generate(batch, longest + tokens, sampling, batch_seed(seed, number))
                self.progress(len(found), len(short))
        finally:
            self.model.generation_config = own
        return found

    def keep(self, key: Any, make: Callable[[], Kept]) -> Kept:
        """What ``make`` gives, made once for a ``key``."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def _logprob(logits: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """From ``[positions, vocabulary]``, the last of which predict ``continuation``."""
    rows = logits[-len(continuation) :]
    targets = torch.tensor(continuation, device=rows.device)
    total = -torch.nn.functional.cross_entropy(rows, targets, reduction="none").sum()
    return float(total), bool((rows.argmax(dim=-1) == targets).all())
