"""Engines: what runs the model when it writes. One file an engine."""

from secateur.registry import Entry, Registry

ENGINES = Registry(
    "engine",
    [
        Entry(
            "transformers",
            "secateur.generation.transformers_engine:Transformers",
            "model.generate in batches (the default).",
        )
    ],
)
