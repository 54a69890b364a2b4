"""Pruning methods, one file each. This table names them without importing torch; to add one, see README.md."""

from secateur.registry import Entry, Registry

METHODS = Registry(
    "method",
    [
        Entry("magnitude", "secateur.methods.magnitude:Magnitude", "Smallest weights go; needs no data (the control)."),
        Entry("wanda", "secateur.methods.wanda:Wanda", "Smallest |weight| x input norm of each output row go."),
        Entry(
            "sparsegpt", "secateur.methods.sparsegpt:SparseGPT", "Optimal-brain-surgeon pruning; the rest is updated."
        ),
        Entry(
            "wanda-variant",
            "secateur.methods.wanda_variant:WandaVariant",
            "Wanda scores; every row loses the same share of their sum.",
        ),
        Entry(
            "dsnot",
            "secateur.methods.dsnot:DSnoT",
            "Swaps weights of another method's mask to restore each row's mean output.",
        ),
        Entry(
            "ria", "secateur.methods.ria:RIA", "Wanda's idea with weights relative to the sums of their row and column."
        ),
        Entry(
            "reconstruct",
            "secateur.methods.reconstruction:Reconstruct",
            "Another method's mask, its kept weights refitted by least squares.",
        ),
        Entry(
            "sparseswaps",
            "secateur.methods.sparseswaps:SparseSwaps",
            "Another method's mask, bettered by swaps of one kept and one pruned weight of a row.",
        ),
        Entry(
            "admm", "secateur.methods.admm:ADMM", "ADMM updates the weights while the mask grows over a cubic schedule."
        ),
        Entry(
            "alps",
            "secateur.methods.alps:ALPS",
            "ADMM with a growing penalty finds the mask; conjugate gradients then fit what is kept.",
        ),
    ],
)
