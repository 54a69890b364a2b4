"""How varied a set of samples is, and how its tokens are distributed: no model is asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def n_grams(sequence: Sequence[int], size: int) -> Iterator[tuple[Any, ...]]:
    """The n-grams of one sequence, in order."""
    return zip(*(sequence[start:] for start in range(size)), strict=False)


def distinct(sequences: Iterable[Sequence[int]], size: int) -> float:
    """Distinct-n: different n-grams over all n-grams of the sequences; none spans two. 0 when there is none.

    It falls with the amount of text, so only sets of one size compare. Source: Li et al. 2016, arXiv 1510.03055.
    """
    found: set[tuple[Any, ...]] = set()
    total = 0
    for sequence in sequences:
        found.update(n_grams(sequence, size))
        total += max(len(sequence) - size + 1, 0)
    return len(found) / total if total else 0.0


def repeated(sequences: Sequence[Sequence[int]], size: int = 4) -> float:
    """The share of a sequence's n-grams that stood in it before, ``1 - different / all``; the mean over sequences that have
    any. Source: Welleck et al. 2020, arXiv 1908.04319 (seq-rep-n)."""
    shares = []
    for sequence in sequences:
        total = len(sequence) - size + 1
        if total > 0:
            shares.append(1 - len(set(n_grams(sequence, size))) / total)
    return math.fsum(shares) / len(shares) if shares else 0.0


def compression_ratio(texts: Iterable[str]) -> float:
    """Bytes of UTF-8 over bytes compressed: higher is more redundant. 1 for no text.

    All texts together, sorted so that their order does not matter, by raw LZMA2 (preset 6): its window of 8 MiB sees
    repetition between samples, which gzip's of 32 KiB, used by Shaib et al. 2024 (arXiv 2403.00553), does not.
    """
    import lzma

    raw = "\n".join(sorted(texts)).encode("utf-8", "surrogatepass")
    if not raw:
        return 1.0
    return len(raw) / len(lzma.compress(raw, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]))


def counts(sequences: Iterable[Sequence[int]]) -> Counter[int]:
    """How often each token occurs."""
    found: Counter[int] = Counter()
    for sequence in sequences:
        found.update(sequence)
    return found


def mass_covered(found: Mapping[int, int], reference: Mapping[int, int]) -> float:
    """The share of the reference's tokens (by occurrence) whose type occurs in ``found``."""
    total = sum(reference.values())
    return sum(count for token, count in reference.items() if token in found) / total if total else 0.0


def kl(found: Mapping[int, int], reference: Mapping[int, int], vocabulary: int) -> float:
    """``sum p log(p / q)`` in nats, p the token frequencies ``found`` and q the reference's.

    One half is added to every count of the ``vocabulary`` tokens (Jeffreys' prior), so that no q is 0; the value therefore
    depends on the amounts of text.
    """
    seen = found.keys() | reference.keys()
    vocabulary = max(vocabulary, len(seen))
    n, m = sum(found.values()) + vocabulary / 2, sum(reference.values()) + vocabulary / 2
    terms = [(vocabulary - len(seen)) * (0.5 / n) * math.log(m / n)]
    for token in seen:
        p, q = (found.get(token, 0) + 0.5) / n, (reference.get(token, 0) + 0.5) / m
        terms.append(p * math.log(p / q))
    return math.fsum(terms)  # exact, so that the order of the tokens does not matter


def jensen_shannon(found: Mapping[int, int], reference: Mapping[int, int]) -> float:
    """``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2`` in nats: 0 for equal frequencies, ln 2 for no token in
    common. Nothing is added to the counts. Source: Lin 1991."""
    n, m = sum(found.values()), sum(reference.values())
    if not n or not m:
        return math.log(2)
    terms = []
    for token in found.keys() | reference.keys():
        p, q = found.get(token, 0) / n, reference.get(token, 0) / m
        terms += [share * math.log(2 * share / (p + q)) / 2 for share in (p, q) if share]
    return max(math.fsum(terms), 0.0)
