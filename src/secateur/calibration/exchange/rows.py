"""Samples to rows and back: padding, masks, and every way in which somebody else's row can be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from secateur.calibration.exchange.base import IDS, Row
from secateur.calibration.sample import Finish, Sample
from secateur.errors import CalibrationError


def rows_of(samples: Sequence[Sample], texts: Sequence[str], pad: int | None = None) -> list[Row]:
    """One row a sample. ``pad``: the token that fills every row up to the longest, masked; ``None``: none is."""
    longest = max(len(sample.token_ids) for sample in samples)
    rows = []
    for sample, text in zip(samples, texts, strict=True):
        ids = list(sample.token_ids)
        missing = 0 if pad is None else longest - len(ids)
        rows.append(
            {
                "input_ids": ids + [pad] * missing,
                "attention_mask": [1] * len(ids) + [0] * missing,
                "text": text,
                "prompt_tokens": sample.prompt_tokens,
                "finish": sample.finish,
                "mean_logprob": sample.mean_logprob,
                "origin": sample.origin,
            }
        )
    return rows


@dataclass
class RowReader:
    """Rows to samples of a model called ``model`` that has ``vocabulary`` tokens and, if it says, ``positions``.

    Counts the ``rows`` read and the ``padding`` removed. Everything that is wrong raises ``CalibrationError``.
    """

    model: str
    vocabulary: int
    positions: int | None = None
    rows: int = 0
    padding: int = 0
    samples: list[Sample] = field(default_factory=list)

    def read(self, rows: Iterable[tuple[str, Row]], what: str) -> list[Sample]:
        """The samples of all rows; ``what`` is what they come from."""
        for where, row in rows:
            self.rows += 1
            self.samples += self._samples(where, row)
        if not self.samples:
            raise CalibrationError(f"{what} holds no samples.")
        return self.samples

    def _samples(self, where: str, row: Any) -> list[Sample]:
        """Those of one row: one, or as many as its ``input_ids`` has lists of ids (a batch)."""
        if not isinstance(row, Mapping):
            raise CalibrationError(f"{where} is a {type(row).__name__}, not an object with input_ids.")
        name = next((key for key in IDS if row.get(key) is not None), None)
        if name is None:
            raise CalibrationError(_no_ids(where, row))
        ids, mask = _plain(row[name]), _plain(row.get("attention_mask"))
        batched = isinstance(ids, list) and bool(ids) and all(isinstance(entry, list) for entry in ids)
        if not batched:
            return [self._sample(where, ids, mask, row)]
        masks = mask if isinstance(mask, list) else [None] * len(ids)
        if len(masks) != len(ids):
            raise CalibrationError(f"{where} has {len(ids)} lists of input_ids, but {len(masks)} of attention_mask.")
        return [self._sample(where, one, its, row) for one, its in zip(ids, masks, strict=True)]

    def _sample(self, where: str, ids: Any, mask: Any, row: Row) -> Sample:
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise CalibrationError(f"{where} has input_ids that are not a list of whole numbers.")
        kept = ids if mask is None else self._unmasked(where, ids, mask)
        if not kept:
            raise CalibrationError(f"{where} has no tokens{' that its attention_mask shows' if ids else ''}.")
        self.padding += len(ids) - len(kept)
        if min(kept) < 0 or max(kept) >= self.vocabulary:
            wrong = min(kept) if min(kept) < 0 else max(kept)
            raise CalibrationError(
                f"{where} holds the token {wrong}, but {self.model} has the tokens 0 to {self.vocabulary - 1}; the data was "
                "made for another model: name that one with --model."
            )
        if self.positions and len(kept) > self.positions:
            raise CalibrationError(
                f"{where} has {len(kept):,} tokens, but {self.model} was made for {self.positions:,} positions; cut the "
                "samples first."
            )
        return _with_facts(where, kept, row)

    def _unmasked(self, where: str, ids: list[int], mask: Any) -> list[int]:
        """The ids that the mask shows; it may hide some at either end, never between."""
        if not isinstance(mask, list) or any(value not in (0, 1) for value in mask):
            raise CalibrationError(f"{where} has an attention_mask that is not a list of 0 and 1.")
        if len(mask) != len(ids):
            raise CalibrationError(
                f"{where} has {len(ids)} input_ids but {len(mask)} values in its attention_mask; they must be as many."
            )
        shown = [index for index, value in enumerate(mask) if value]
        if shown and shown[-1] - shown[0] + 1 != len(shown):
            raise CalibrationError(
                f"{where} has an attention_mask that hides tokens between others; only padding at the ends can be removed."
            )
        return [ids[index] for index in shown]


def _with_facts(where: str, ids: list[int], row: Row) -> Sample:
    """The sample with what the row says about it, where it says anything."""
    prompt, finish, score = row.get("prompt_tokens"), row.get("finish"), row.get("mean_logprob")
    prompt, finish = 0 if prompt is None else prompt, "window" if finish is None else finish
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise CalibrationError(
            f"{where} has {len(ids)} tokens, of which prompt_tokens says {prompt!r} were the prompt; a whole number of at "
            "most as many is needed."
        )
    if finish not in get_args(Finish):
        raise CalibrationError(f"{where} has the finish {finish!r}; known: {', '.join(get_args(Finish))}.")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise CalibrationError(f"{where} has the mean_logprob {score!r}; a finite number or null is needed.")
    origin = row.get("origin")
    score = None if score is None else float(score)
    return Sample(tuple(ids), prompt, finish, score, where.rstrip(",") if origin is None else str(origin))


def _no_ids(where: str, row: Row) -> str:
    if isinstance(row.get("text"), str):
        return (
            f"{where} has text and no input_ids: text becomes calibration data as it is, with 'secateur prune MODEL "
            "--calibration FILE', which tokenises and packs it."
        )
    return f"{where} has no input_ids (found {', '.join(map(str, row)) or 'nothing'})."


def _plain(value: Any) -> Any:
    """Tensors and arrays to lists."""
    return value.tolist() if hasattr(value, "tolist") else value
