"""How much of their wording two texts share: word n-grams, compared exactly and by MinHash."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Set
from itertools import islice
from typing import Any

WORD = re.compile(r"\w+")
AT_ONCE = 4096


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and underscores, lower-cased; punctuation is left out."""
    return WORD.findall(text.lower())


def shingles(texts: Iterable[str], size: int = 3) -> set[str]:
    """The distinct n-grams of ``size`` words in ``texts``; none spans two texts. About 100 bytes each."""
    found: set[str] = set()
    for text in texts:
        run = words(text)
        found.update(map(" ".join, zip(*(run[start:] for start in range(size)), strict=False)))
    return found


def jaccard(one: Set[str], other: Set[str]) -> float:
    """``|A and B| / |A or B|``; 0 when both are empty. It cannot exceed the smaller set's size over the larger's."""
    shared = len(one & other)
    either = len(one) + len(other) - shared
    return shared / either if either else 0.0


def containment(one: Set[str], other: Set[str]) -> float:
    """``|A and B| / |A|``: the share of ``one`` that ``other`` has; unlike the Jaccard index it does not fall only because
    ``other`` is larger. 0 when ``one`` is empty."""
    return len(one & other) / len(one) if one else 0.0


def sketch(found: Set[str], permutations: int = 256, seed: int = 1) -> Any:
    """The MinHash of a set of n-grams: ``permutations`` minima of seeded hash functions (Broder 1997), by datasketch.

    Cost: one SHA-1 and ``permutations`` multiplications an n-gram; 4 * permutations bytes. The order does not matter.
    """
    from datasketch import MinHash

    made = MinHash(num_perm=permutations, seed=seed)
    remaining = iter(found)
    while part := list(islice(remaining, AT_ONCE)):
        made.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in part])
    return made


def sampling_error(jaccard_index: float, permutations: int) -> float:
    """The standard error of a MinHash estimate, ``sqrt(J (1 - J) / permutations)``: each minimum agrees with probability J."""
    return math.sqrt(max(jaccard_index * (1 - jaccard_index), 0.0) / permutations)
