"""How much each linear is pruned so that the whole meets the target. One file an allocation."""

from secateur.registry import Entry, Registry

ALLOCATIONS = Registry(
    "allocation",
    [
        Entry("uniform", "secateur.allocation.uniform:Uniform", "The same sparsity for every linear."),
        Entry(
            "owl", "secateur.allocation.owl:OWL", "Blocks with more outliers among their Wanda scores are pruned less."
        ),
        Entry(
            "alphapruning",
            "secateur.allocation.alphapruning:AlphaPruning",
            "Blocks whose weight spectra have heavier tails are pruned less; no data.",
        ),
        Entry(
            "error",
            "secateur.allocation.error:MeasuredError",
            "Linears whose output suffers more from pruning are pruned less.",
        ),
        Entry(
            "arithmetic",
            "secateur.allocation.arithmetic:Arithmetic",
            "Later blocks are pruned more, in equal steps; no data.",
        ),
    ],
)
