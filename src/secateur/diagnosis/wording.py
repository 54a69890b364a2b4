"""How much of its wording a set shares with the reference, and how it spreads over tokens."""

from __future__ import annotations

from secateur.calibration.diversity import (
    compression_ratio,
    distinct,
    jensen_shannon,
    kl,
    mass_covered,
    repeated,
)
from secateur.calibration.similarity import containment, jaccard, sampling_error
from secateur.diagnosis.base import Family, Finding, Quantity, Subject
from secateur.diagnosis.facts import EXACT_AT_MOST, SHINGLE_WORDS, TextFacts


def similarity(one: TextFacts, other: TextFacts, permutations: int) -> dict[str, float]:
    """3-gram similarity of two texts: by MinHash always, exactly where both are small enough."""
    estimate = float(one.sketch(permutations).jaccard(other.sketch(permutations)))
    found = {"jaccard_minhash": estimate, "jaccard_minhash_error": sampling_error(estimate, permutations)}
    if len(one.shingles) + len(other.shingles) <= EXACT_AT_MOST:
        found["jaccard"] = jaccard(one.shingles, other.shingles)
        found["jaccard_minhash_error"] = sampling_error(found["jaccard"], permutations)
        found["containment"] = containment(one.shingles, other.shingles)
    return found


def _similarity(subject: Subject) -> Finding:
    details = {"shingle_words": SHINGLE_WORDS, "shingles": len(subject.facts.shingles)}
    if subject.reference is None:
        return Finding({}, details)
    reference = subject.reference.facts
    values = similarity(subject.facts, reference, subject.options.permutations)
    vocabulary = subject.facts.vocabulary
    values |= {
        "reference_mass_covered": mass_covered(subject.facts.counts, reference.counts),
        "unigram_kl": kl(subject.facts.counts, reference.counts, vocabulary),
        "unigram_js": jensen_shannon(subject.facts.counts, reference.counts),
    }
    return Finding(values, details | {"reference_shingles": len(reference.shingles)})


def _diversity(subject: Subject) -> Finding:
    facts = subject.facts
    values = {f"distinct_{size}": distinct(facts.ids, size) for size in (1, 2, 3, 4)}
    values |= {
        "repeated_4": repeated(facts.ids, 4),
        "compression_ratio": compression_ratio(facts.texts),
        "vocabulary_seen": len(facts.counts) / facts.vocabulary,
    }
    return Finding(values)


SIMILARITY = Family(
    "Likeness to the reference text",
    {
        "jaccard_minhash": Quantity(
            "3-gram Jaccard, MinHash",
            "shared over all distinct 3-grams of lower-cased words (\\w+, none across samples), estimated by MinHash as in Ji et "
            "al. 2024; it cannot exceed the set's size over the reference's, so compare sets of one size",
            ".4f",
        ),
        "jaccard_minhash_error": Quantity(
            "its standard error", "sqrt(J (1 - J) / permutations), J counted where it can be", ".4f"
        ),
        "jaccard": Quantity("3-gram Jaccard, exact", "the same, counted", ".4f"),
        "containment": Quantity(
            "3-grams known to it", "share of the set's distinct 3-grams that the reference has", ".1%"
        ),
        "reference_mass_covered": Quantity(
            "reference tokens covered",
            "share of the reference's tokens, by occurrence, whose type is in the set",
            ".1%",
        ),
        "unigram_kl": Quantity(
            "token KL", "KL(set || reference) of token frequencies in nats, one half added to every count", ".3f"
        ),
        "unigram_js": Quantity(
            "token JS", "Jensen-Shannon divergence of token frequencies in nats, at most 0.693", ".3f"
        ),
    },
    _similarity,
)
"""Cost: one SHA-1 and ``permutations`` multiplications a distinct 3-gram."""

DIVERSITY = Family(
    "Variety",
    {
        **{
            f"distinct_{size}": Quantity(
                f"distinct-{size}", f"different token {size}-grams over all of them; falls with size (Li et al. 2016)"
            )
            for size in (1, 2, 3, 4)
        },
        "repeated_4": Quantity(
            "repeated 4-grams",
            "share of a sample's token 4-grams that it had before, mean (Welleck et al. 2020)",
            ".1%",
        ),
        "compression_ratio": Quantity(
            "compression", "bytes of the text over bytes after LZMA: higher is more redundant", ".2f"
        ),
        "vocabulary_seen": Quantity("vocabulary seen", "share of the tokenizer's tokens that occur", ".1%"),
    },
    _diversity,
)
"""Cost: a few passes over the tokens, and LZMA at a few MB a second."""
