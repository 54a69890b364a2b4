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
    ],
)
