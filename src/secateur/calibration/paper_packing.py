"""The two ways in which the paper's program draws its samples (arXiv 2410.17711 and its code).

Each gives exactly its windows for the same texts, tokenizer and seed, with what it leaves open made safe: it loops for ever
where no document is long enough. What differs: it draws from one whole file of a corpus, this from what a source hands
over (a Hub data set: its first shuffled documents); and a text beyond ``base.PIECE`` characters is several documents, or,
joined, tokenised in several pieces, so that memory stays bounded.
"""

from __future__ import annotations

import bisect
import itertools
import random
from array import array
from collections.abc import Iterable, Sequence

from secateur.calibration.document import Document
from secateur.calibration.sample import Sample


def long_documents(
    length: int, documents: Sequence[Document], samples: int, rng: random.Random
) -> tuple[list[Sample], dict[str, int]]:
    """Random windows of random documents: one is drawn until it has more than ``length`` tokens, then a window in it.

    Documents may come again. Fewer than ``samples`` (none) are found only when no document is long enough. Cost: the
    documents drawn are tokenised, not the others.
    """
    long: dict[int, Document] = {}
    short: set[int] = set()
    found: list[Sample] = []
    places: list[tuple[int, int]] = []
    draws = 0
    while len(found) < samples and len(short) < len(documents):
        index = rng.randint(0, len(documents) - 1)
        draws += 1
        if index not in long:
            if index in short or len((document := documents[index]).token_ids) <= length:
                short.add(index)
                continue
            long[index] = document
        document = long[index]
        start = rng.randint(0, len(document.token_ids) - length - 1)
        found.append(Sample(document.token_ids[start : start + length], origin=document.origin))
        places.append((index, start))
    return found, {
        "documents_in_source": len(documents),
        "documents_drawn": draws,
        "documents_too_short": draws - len(found),
        "documents_repeated": len(found) - len(long),
        "windows_overlapping": _overlapping(places, length),
    }


def joined(
    length: int, documents: Iterable[Document], samples: int, rng: random.Random
) -> tuple[list[Sample], dict[str, int]]:
    """Random windows of ``documents``, which are all texts joined and tokenised, in pieces. Four bytes a token."""
    stream, starts, origins = array("i"), [], []
    for document in documents:
        starts.append(len(stream))
        origins.append(document.origin)
        stream.extend(document.token_ids)
    found: list[Sample] = []
    places: list[tuple[int, int]] = []
    while len(found) < samples and len(stream) > length:
        start = rng.randint(0, len(stream) - length - 1)
        origin = origins[bisect.bisect_right(starts, start) - 1]
        found.append(Sample(tuple(stream[start : start + length]), origin=origin))
        places.append((0, start))
    overlapping = _overlapping(places, length)
    return found, {"pieces_joined": len(starts), "tokens_read": len(stream), "windows_overlapping": overlapping}


def _overlapping(places: Sequence[tuple[int, int]], length: int) -> int:
    """How many windows, each a document and a start in it, share tokens with another."""
    order = sorted(places)
    shared = [one[0] == other[0] and other[1] - one[1] < length for one, other in itertools.pairwise(order)]
    return sum(before or after for before, after in zip([False, *shared], [*shared, False], strict=True))
