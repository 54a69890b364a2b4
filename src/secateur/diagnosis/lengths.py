"""How much there is in a set: samples, tokens, doubles."""

from __future__ import annotations

import statistics

from secateur.diagnosis.base import Family, Finding, Quantity, Subject


def _look(subject: Subject) -> Finding:
    lengths = [len(sample.token_ids) for sample in subject.samples]
    different = len({sample.token_ids for sample in subject.samples})
    values = {
        "samples": len(lengths),
        "distinct_samples": different,
        "tokens": sum(lengths),
        "length_min": min(lengths),
        "length_median": statistics.median(lengths),
        "length_max": max(lengths),
    }
    return Finding({name: float(value) for name, value in values.items()}, {"lengths": sorted(lengths)})


LENGTHS = Family(
    "Size",
    {
        "samples": Quantity("samples", "sequences in the set", ",.0f"),
        "distinct_samples": Quantity("different samples", "sequences whose ids no earlier one has", ",.0f"),
        "tokens": Quantity("tokens", "of all samples, begin tokens included", ",.0f"),
        "length_min": Quantity("shortest", "tokens of the shortest sample", ",.0f"),
        "length_median": Quantity("median length", "tokens of the median sample", ",.0f"),
        "length_max": Quantity("longest", "tokens of the longest sample", ",.0f"),
    },
    _look,
)
"""Cost: none."""
