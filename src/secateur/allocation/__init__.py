"""How much each linear is pruned so that the whole meets the target. One file an allocation."""

from secateur.registry import Entry, Registry

ALLOCATIONS = Registry(
    "allocation",
    [Entry("uniform", "secateur.allocation.uniform:Uniform", "The same sparsity for every linear.")],
)
