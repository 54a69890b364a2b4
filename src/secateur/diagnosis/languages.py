"""Which languages a set is in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from secateur.diagnosis.base import Family, Finding, Quantity, Subject

UNDECIDED = "und"


def language_counts(texts: Sequence[str]) -> dict[str, int]:
    """Texts by language (ISO 639), the most frequent first; ``und`` for what has nothing to tell by.

    By py3langid (naive Bayes over byte n-grams, Lui and Baldwin 2012); it gives code some language too.
    """
    from py3langid import langid

    nothing = langid.classify("")
    answers = [langid.classify(text) for text in texts]
    found = Counter(UNDECIDED if answer == nothing else answer[0] for answer in answers)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _look(subject: Subject) -> Finding:
    found = language_counts(subject.facts.texts)
    total = sum(found.values())
    shares = [count / total for count in found.values()]
    values = {
        "english": found.get("en", 0) / total,
        "top_language": max(shares),
        "language_entropy": max(math.fsum(-share * math.log(share) for share in shares), 0.0),
    }
    return Finding(values, {"languages": found})


LANGUAGES = Family(
    "Language",
    {
        "english": Quantity("English", "share of samples that py3langid takes for English", ".1%"),
        "top_language": Quantity("most frequent", "share of the most frequent language", ".1%"),
        "language_entropy": Quantity("entropy", "entropy of the languages' shares in nats; 0: only one"),
    },
    _look,
)
"""Cost: some milliseconds a sample."""
