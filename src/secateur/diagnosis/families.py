"""The table of measures: families of numbers that say something of a calibration set before anything is pruned."""

from __future__ import annotations

from secateur.registry import Entry, Registry

MEASURES = Registry(
    "measure",
    [
        Entry("size", "secateur.diagnosis.lengths:LENGTHS", "Samples, tokens, lengths."),
        Entry("likelihood", "secateur.diagnosis.likelihood:LIKELIHOOD", "Perplexity, Min-K % and Min-K %++."),
        Entry(
            "similarity", "secateur.diagnosis.wording:SIMILARITY", "3-grams and tokens shared with a reference text."
        ),
        Entry(
            "diversity",
            "secateur.diagnosis.wording:DIVERSITY",
            "Distinct n-grams, repetition, compression, vocabulary.",
        ),
        Entry("languages", "secateur.diagnosis.languages:LANGUAGES", "The mix of languages."),
        Entry(
            "spectra",
            "secateur.diagnosis.inside:SPECTRA",
            "Effective rank and condition of each Gram of the dense model.",
        ),
        Entry("activations", "secateur.diagnosis.inside:ACTIVATIONS", "Input norms against those of a reference text."),
        Entry(
            "masks",
            "secateur.diagnosis.overlap:OVERLAP",
            "Overlap of the Wanda masks of a set's halves, and with a reference's.",
        ),
    ],
)
