"""Comparisons, one file each: a question about the axes of a study, answered with an estimate, an interval and a verdict."""

from secateur.registry import Entry, Registry

_HERE = "secateur.studies.comparisons"

COMPARISONS = Registry(
    "comparison",
    [
        Entry("difference", f"{_HERE}.difference:Difference", "Labels of an axis against a baseline, paired by seed."),
        Entry("steadiness", f"{_HERE}.steadiness:Steadiness", "How much seeds alone move labels, against a baseline."),
        Entry("spread", f"{_HERE}.spread:Spread", "The range over one axis, and whether it grows along another."),
        Entry("trend", f"{_HERE}.trend:Trend", "The metric along a numeric axis."),
        Entry("correlation", f"{_HERE}.correlation:Correlation", "A fact of the calibration sets against the metric."),
        Entry("effects", f"{_HERE}.effects:Effects", "The range over one axis against the range over another."),
    ],
)

__all__ = ["COMPARISONS"]
