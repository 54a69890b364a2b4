"""llm-compressor's one-shot pruning, timed. Runs in that package's own virtual environment.

    PEER-PYTHON llmcompressor_prune.py REQUEST.json

Timed is one call of its ``Oneshot`` object: the data loader, tracing, both calibration passes over every block, and
pruning. Not timed: imports, loading the model, parsing arguments (the object's constructor); nothing is saved.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import llmcompressor.pipelines.sequential.pipeline as pipeline  # pyright: ignore[reportMissingImports]
import torch
from datasets import Dataset
from llmcompressor.entrypoints.oneshot import Oneshot  # pyright: ignore[reportMissingImports]
from llmcompressor.modifiers.pruning import (  # pyright: ignore[reportMissingImports]
    SparseGPTModifier,
    WandaPruningModifier,
)
from measuring import Phases, Request, Stopwatch, block_linears, report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

MODIFIERS: dict[str, Any] = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}
SAMPLES_AT_ONCE = 1  # its default


def one_shot(request: Request, model: Any) -> Any:
    """The object whose call prunes ``model``: all linears but the head, block by block, on the samples in their order."""
    keep, _, group = request.pattern.partition(":")
    # Its N of N:M is the number pruned.
    structure = f"{int(group) - int(keep)}:{group}" if group else "0:0"
    modifier = MODIFIERS[request.method](
        sparsity=request.sparsity, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"]
    )
    tokens = request.tokens()
    samples = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    # The samples are token ids already; the tokenizer is there because one is asked for.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    return Oneshot(
        model=model,
        recipe=[modifier],
        dataset=samples,
        processor=tokenizer,
        batch_size=SAMPLES_AT_ONCE,
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
        max_seq_length=tokens.shape[1],
        pipeline="sequential",
        sequential_targets=["LlamaDecoderLayer"],
    )


def main() -> None:
    request, phases = Request.read(), Phases()
    modifier = MODIFIERS[request.method]
    phases.wrap(pipeline, "trace_subgraphs", "load")
    phases.wrap(modifier, "calibrate_module", "statistics")
    phases.wrap(modifier, "compress_modules", "solve")
    model = AutoModelForCausalLM.from_pretrained(Path(request.model), dtype="auto")
    run = one_shot(request, model)
    loaded_dtype = str(model.dtype)
    with Stopwatch(phases) as clock, phases.phase("forward"):
        run()
    weights = ((name, linear.weight.data) for name, linear in block_linears(model).items())
    report(request, clock, weights, dtype=loaded_dtype, version=version("llmcompressor"))


if __name__ == "__main__":
    main()
