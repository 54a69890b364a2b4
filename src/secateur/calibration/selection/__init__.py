"""Selection of the set's samples from a larger pool. One file a way."""

from secateur.registry import Entry, Registry

_HERE = "secateur.calibration.selection"

SELECTIONS = Registry(
    "selection",
    [
        Entry("random", f"{_HERE}.random_choice:RandomChoice", "Random samples (the control)."),
        Entry(
            "lowest-perplexity",
            f"{_HERE}.lowest_perplexity:LowestPerplexity",
            "The samples of lowest perplexity.",
        ),
        Entry("min-k", f"{_HERE}.min_k:MinK", "The samples of highest (or lowest) Min-K %++."),
        Entry("coverage", f"{_HERE}.coverage:Coverage", "Greedy cover of the pool's token types."),
        Entry(
            "diversity",
            f"{_HERE}.diversity:Diversity",
            "Greedily the sample whose n-grams are least present in what is chosen.",
        ),
        Entry(
            "k-means",
            f"{_HERE}.k_means:KMeans",
            "The sample nearest to each centre of clusters of activations.",
        ),
        Entry(
            "influence",
            f"{_HERE}.influence:Influence",
            "The samples whose loss gradients are most like those of target texts.",
        ),
        Entry(
            "matched",
            f"{_HERE}.matched:Matched",
            "Samples whose perplexities are those of another set, one for one (a control).",
        ),
    ],
)
