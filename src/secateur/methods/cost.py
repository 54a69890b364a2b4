"""What a method's solve of one linear costs, for the forecast before a run (pruning.forecast).

The forecast times every method on a small matrix first, so only the growth with the widths matters of the coefficients of
time; those of memory are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

KERNEL_SECONDS = 4e-6
"""What one small tensor operation takes, however little it does."""


@dataclass(frozen=True)
class Cost:
    """Of one linear ``[out, in]``. Time: ``shared_flops`` * in^3 once for all linears with the same input, then
    ``flops`` * out * in^2, ``moved`` bytes a weight, and ``steps`` small operations an input. Memory beside the weight
    ``[out, in]`` fp32 and the statistics: ``shared_held`` * in^2 bytes at the peak of making the shared part, of which
    ``shared_kept`` * in^2 stay as long as the statistics; then ``held`` bytes a weight at the peak."""

    shared_flops: float = 0.0
    flops: float = 0.0
    moved: float = 0.0
    steps: float = 0.0
    held: float = 0.0
    shared_held: float = 0.0
    shared_kept: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            self.shared_flops + other.shared_flops,
            self.flops + other.flops,
            self.moved + other.moved,
            self.steps + other.steps,
            max(self.held, other.held),
            max(self.shared_held, other.shared_held),
            self.shared_kept + other.shared_kept,
        )

    def shared_seconds(self, inputs: int, flop_rate: float) -> float:
        return self.shared_flops * inputs**3 / flop_rate

    def seconds(self, outputs: int, inputs: int, flop_rate: float, byte_rate: float) -> float:
        """For one linear, given FLOP/s of fp32 products and bytes/s of element-wise work, without the shared part."""
        weights = outputs * inputs
        return self.flops * weights * inputs / flop_rate + self.moved * weights / byte_rate + self.small(inputs)

    def small(self, inputs: int) -> float:
        return self.steps * inputs * KERNEL_SECONDS

    def workspace(self, outputs: int, inputs: int) -> int:
        """Bytes at the peak of the first solve with an input: while the shared part is made, or beside it thereafter."""
        return int(max(self.shared_held * inputs**2, self.shared_kept * inputs**2 + self.held * outputs * inputs))

    def kept(self, inputs: int) -> int:
        """Bytes that stay with the statistics."""
        return int(self.shared_kept * inputs**2)


UNKNOWN = Cost(flops=2, moved=100, held=24, shared_held=12, shared_kept=4)
"""Of a method that does not say."""
SCORES = Cost(moved=60, held=7)
"""Of a method that ranks weights a few rows at a time."""
