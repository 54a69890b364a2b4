"""Filters: which samples stay out, and why. One file a filter."""

from secateur.registry import Entry, Registry

FILTERS = Registry(
    "filter",
    [
        Entry(
            "perplexity",
            "secateur.calibration.filters.perplexity:PerplexityFilter",
            "Drop the samples of highest perplexity.",
        )
    ],
)
