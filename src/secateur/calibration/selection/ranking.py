"""The best of measured samples, with one tie rule and no silent NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.errors import CalibrationError


def lowest(values: Sequence[float], count: int, measure: str) -> list[int]:
    """The indices of the ``count`` lowest values, lowest first; of equal ones the earlier comes first.

    Raises ``CalibrationError`` naming the ``measure`` when a value is not finite.
    """
    unusable = sum(not math.isfinite(value) for value in values)
    if unusable:
        raise CalibrationError(
            f"{unusable} of {len(values)} samples have no finite {measure}, so they cannot be ranked; they may be of a single "
            "token, or the model's outputs may not be finite in this dtype."
        )
    return sorted(range(len(values)), key=lambda index: (values[index], index))[:count]
