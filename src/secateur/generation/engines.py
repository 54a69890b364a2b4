"""Engines: what runs the model when it writes. One file an engine."""

from secateur.registry import Entry, Registry

_HERE = "secateur.generation"

ENGINES = Registry(
    "engine",
    [
        Entry("transformers", f"{_HERE}.transformers_engine:Transformers", "model.generate in batches (the default)."),
        Entry("vllm", f"{_HERE}.vllm_engine:VLLM", "vLLM, for large models on GPUs (extra: vllm)."),
        Entry("ray", f"{_HERE}.ray_engine:Ray", "Several machines at once by Ray, each with an engine (extra: ray)."),
    ],
)
