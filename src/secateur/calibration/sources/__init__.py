"""Where calibration text comes from. One file a source; corpora with a name stand in ``presets``."""

from secateur.calibration.sources.presets import PRESETS
from secateur.registry import Entry, Registry

_TEXTS = "secateur.calibration.sources.python_texts"
_NAMED = "secateur.calibration.sources.named"

SOURCES = Registry(
    "source",
    [
        Entry(
            "self", "secateur.generation.self_generation:SelfGeneration", "Text the model being pruned writes itself."
        ),
        Entry(
            "random-tokens",
            "secateur.calibration.sources.random_tokens:RandomTokens",
            "Uniformly random tokens (a control).",
        ),
        Entry(
            "stdlib-train",
            f"{_TEXTS}:StdlibTrain",
            "Python's standard library: what the reference model was trained on.",
        ),
        Entry("stdlib-heldout", f"{_TEXTS}:StdlibHeldout", "The library's held-out files: for evaluation only."),
        Entry("site-packages", f"{_TEXTS}:SitePackages", "Sources of the installed packages: code by other writers."),
        Entry("prose", f"{_TEXTS}:Prose", "The Python language reference: English prose, in no model's way."),
        Entry(
            "prose-train",
            f"{_TEXTS}:ProseTrain",
            "The topics of prose to calibrate on where prose-heldout is evaluated on.",
        ),
        Entry(
            "prose-heldout",
            f"{_TEXTS}:ProseHeldout",
            "The other topics of prose, which share no paragraph with those: for evaluation only.",
        ),
        Entry(
            "file",
            "secateur.calibration.sources.files:FileSource",
            "A txt, jsonl, jsonl.gz or parquet file, or a folder of them.",
        ),
        Entry(
            "corpus",
            "secateur.calibration.sources.corpus:CorpusSource",
            "A Hub data set, streamed: ORG/NAME or ORG/NAME:SUBSET.",
        ),
        *(Entry(preset.name, f"{_NAMED}:{preset.name}", preset.summary) for preset in PRESETS.values()),
    ],
)
