"""Filters: which samples stay out, and why. One file a filter."""

from secateur.registry import Entry, Registry

_HERE = "secateur.calibration.filters"

FILTERS = Registry(
    "filter",
    [
        Entry(
            "perplexity",
            f"{_HERE}.perplexity:PerplexityFilter",
            "Drop the samples of highest perplexity (or lowest, both, or outside bounds).",
        ),
        Entry("length", f"{_HERE}.length:LengthFilter", "Drop the samples of too few or too many tokens."),
        Entry("repetition", f"{_HERE}.repetition:RepetitionFilter", "Drop the samples that repeat themselves."),
        Entry(
            "duplicates",
            f"{_HERE}.duplicates:DuplicatesFilter",
            "Drop the samples that are the same as an earlier one, or nearly.",
        ),
        Entry("language", f"{_HERE}.language:LanguageFilter", "Keep the samples in the languages named."),
        Entry(
            "contamination",
            f"{_HERE}.contamination:ContaminationFilter",
            "Drop the samples that share word n-grams with evaluation texts.",
        ),
    ],
)
