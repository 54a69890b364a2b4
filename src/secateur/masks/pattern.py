"""Sparsity patterns: ``unstructured``, or ``N:M`` = keep at most N of every M consecutive inputs of a row."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from secateur.errors import PatternError


@dataclass(frozen=True)
class Pattern:
    """``keep`` of every ``group`` consecutive inputs; both ``None`` for unstructured sparsity.

    ``mixed``: an allocation chooses another ``keep`` for each linear, so that hardware for one N:M cannot use the whole.
    """

    keep: int | None = None
    group: int | None = None
    mixed: bool = False

    @property
    def structured(self) -> bool:
        return self.group is not None

    @property
    def sparsity(self) -> float | None:
        """The sparsity an N:M pattern implies, 1 - N/M; ``None`` when unstructured."""
        return None if self.keep is None or self.group is None else 1 - self.keep / self.group

    def __str__(self) -> str:
        return "mixed " * self.mixed + f"{self.keep}:{self.group}" if self.structured else "unstructured"

    def at(self, sparsity: float) -> Pattern:
        """The pattern of one linear given this sparsity: of a mixed pattern the N:M nearest to it, else this one."""
        if not self.mixed or self.group is None:
            return self
        return Pattern(round(self.group * (1 - sparsity)), self.group)

    def check_width(self, inputs: int, where: str) -> None:
        """Raise ``PatternError`` unless rows of ``inputs`` weights divide into the pattern's groups."""
        if self.group is not None and inputs % self.group:
            raise PatternError(
                f"{where} has {inputs} inputs, which do not divide into groups of {self.group}; the pattern {self} "
                f"cannot be applied to it. Leave it dense with pruning.skip, or choose another pattern."
            )


UNSTRUCTURED = Pattern()


def parse_pattern(text: object) -> Pattern:
    """``"unstructured"``, ``"N:M"`` with 0 < N < M, or ``"mixed N:M"``. Raises ``PatternError`` for anything else."""
    if not isinstance(text, str):
        raise PatternError(
            f"A pattern is text such as '2:4' or 'unstructured', but {text!r} ({type(text).__name__}) was found. "
            "In YAML 1.1 an unquoted 2:4 is the number 124: write it in quotes."
        )
    if text == "unstructured":
        return UNSTRUCTURED
    match = re.fullmatch(r"\s*(mixed\s+)?(\d+)\s*:\s*(\d+)\s*", text)
    if not match:
        raise PatternError(f"There is no pattern {text!r}; known: 'unstructured', or 'N:M' such as '2:4' or '4:8'.")
    keep, group = int(match[2]), int(match[3])
    if keep >= group or keep < 1:
        hint = " (did you mean " + repr(f"{group}:{keep}") + "?)" if keep > group >= 1 else ""
        raise PatternError(
            f"The pattern {text!r} keeps {keep} of every {group} weights{hint}; N:M needs 1 <= N < M, N weights kept."
        )
    return Pattern(keep, group, mixed=bool(match[1]))


def resolve_sparsity(pattern: Pattern, sparsity: float | None, default: float = 0.5) -> float:
    """The share of weights to prune. ``None`` takes the pattern's own, or ``default`` when unstructured.

    Raises ``PatternError`` when it is not strictly between 0 and 1, or contradicts an N:M pattern.
    """
    implied = pattern.sparsity
    if sparsity is None:
        return default if implied is None else implied
    if isinstance(sparsity, bool) or not math.isfinite(sparsity) or not 0 < sparsity < 1:
        raise PatternError(
            f"The sparsity {sparsity} is not strictly between 0 and 1; it is the share of weights set to zero, e.g. 0.5."
        )
    if implied is not None and abs(sparsity - implied) > 1e-9:
        raise PatternError(
            f"The sparsity {sparsity} contradicts the pattern {pattern}, which prunes exactly {implied:g}; leave one out."
        )
    return sparsity
