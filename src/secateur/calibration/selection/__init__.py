"""Selection of the set's samples from a larger pool. One file a way."""

from secateur.registry import Entry, Registry

SELECTIONS = Registry(
    "selection",
    [
        Entry(
            "random",
            "secateur.calibration.selection.random_choice:RandomChoice",
            "Random samples (the control).",
        )
    ],
)
