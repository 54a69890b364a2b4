"""The samples that together hold the most different words."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection


@dataclass(frozen=True)
class Coverage(Selection):
    """Greedy cover of the pool's token types.

    Each next sample is the one with the most types that none of those chosen has (of equal ones the earlier). A type is a
    token's text in lower case, without spaces around it or the mark of a sub-word; special tokens and white space are none,
    a token that is part of a character is its own. When nothing new is left, counting starts again with the rest.
    Greedy covers at least ``1 - 1/e`` of what the best choice covers (Nemhauser et al. 1978). A sample's value is how many
    types it added, or would still have added.
    Cost: no model; each sample's gain is counted again only when it may be the largest (Minoux 1978).
    Source: ZipCal, Monaco et al. 2026, arXiv 2603.16105.
    """

    pool: float = 4.0

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        types = types_of(samples, context)
        gains = [0] * len(samples)
        chosen: list[int] = []
        left = list(range(len(samples)))
        while len(chosen) < count:
            covered: set[str] = set()
            found = _cover([(index, types[index]) for index in left], count - len(chosen), covered)
            # Without a single type in any of them, they are taken as they come.
            found = found or [(index, 0) for index in left[: count - len(chosen)]]
            for index, gain in found:
                gains[index] = gain
                chosen.append(index)
            left = sorted(set(left) - set(chosen))
            for index in left:
                gains[index] = len(types[index] - covered)
        return Choice(chosen, [float(gain) for gain in gains])


def types_of(samples: Sequence[Sample], context: Context) -> list[set[str]]:
    """The types of each sample's tokens."""
    known = sorted({token for sample in samples for token in sample.token_ids})
    texts = context.texts([Sample((token,)) for token in known])
    types = {token: _type(token, text) for token, text in zip(known, texts, strict=True)}
    return [{types[token] for token in sample.token_ids} - {""} for sample in samples]


def _type(token: int, text: str) -> str:
    if "\ufffd" in text:
        return f"\ufffd{token}"
    return text.strip().strip("\u2581").removeprefix("##").lower()


def _cover(candidates: Sequence[tuple[int, set[str]]], count: int, covered: set[str]) -> list[tuple[int, int]]:
    """Up to ``count`` of the candidates with what each adds to ``covered``, until none adds anything."""
    types = dict(candidates)
    queue = [(-len(own), index) for index, own in candidates]
    heapq.heapify(queue)
    found: list[tuple[int, int]] = []
    while queue and len(found) < count:
        bound, index = heapq.heappop(queue)
        gain = len(types[index] - covered)
        if not bound:
            break
        if gain < -bound:
            heapq.heappush(queue, (-gain, index))
            continue
        found.append((index, gain))
        covered |= types[index]
    return found
