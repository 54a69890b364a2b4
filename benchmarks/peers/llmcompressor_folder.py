"""llm-compressor prunes a model folder, calibrated on an exported set. Runs in that package's own virtual environment.

    PEER-PYTHON llmcompressor_folder.py REQUEST.json

The call is the one in docs/use-elsewhere.md with a pruning modifier in the quantising one's place. Written are the
pruned weights of all blocks' linears, and what the embedding was shown, sample by sample.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

IDS, WEIGHTS, RESULT = "ids.json", "weights.safetensors", "result.json"


@dataclass(frozen=True)
class FolderRequest:
    """``model``: a folder of a Llama; ``samples``: a folder of ``Dataset.save_to_disk`` with ``input_ids`` and
    ``attention_mask``; ``out``: for results; ``backwards``: the samples in reverse order."""

    model: str
    samples: str
    out: str
    method: str
    pattern: str
    sparsity: float
    block: int
    damping: float
    backwards: bool = False

    @classmethod
    def read(cls, path: str) -> FolderRequest:
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def modifier_for(request: FolderRequest) -> Any:
    from llmcompressor.modifiers.pruning import (  # pyright: ignore[reportMissingImports]
        SparseGPTModifier,
        WandaPruningModifier,
    )

    keep, _, group = request.pattern.partition(":")
    settings: dict[str, Any] = {
        "sparsity": request.sparsity,
        "mask_structure": f"{int(group) - int(keep)}:{group}" if group else "0:0",  # its N of N:M is the number pruned
        "targets": ["Linear"],
        "ignore": ["re:.*lm_head"],
    }
    if request.method == "wanda":
        return WandaPruningModifier(**settings)
    return SparseGPTModifier(**settings, block_size=request.block, dampening_frac=request.damping)


def note_ids(model: Any) -> list[list[int]]:
    """The list that every sequence of ids the model is shown will be put into."""
    shown: list[list[int]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input"]
        if ids.device.type != "meta":
            shown.extend(ids.tolist())

    model.get_input_embeddings().register_forward_pre_hook(note, with_kwargs=True)
    return shown


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import load_from_disk
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    request = FolderRequest.read(sys.argv[1])
    samples = load_from_disk(request.samples).select_columns(["input_ids", "attention_mask"])
    if request.backwards:
        samples = samples.select(list(range(len(samples)))[::-1])
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype="auto")
    shown = note_ids(model)
    facts = {
        "dtype": str(model.dtype),
        "attention": model.config._attn_implementation,
        "llmcompressor": version("llmcompressor"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    started, cpu = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        tokenizer=request.model,
        dataset=samples,
        recipe=modifier_for(request),
        max_seq_length=max(len(ids) for ids in samples["input_ids"]),
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
        pipeline="sequential",
        sequential_targets=["LlamaDecoderLayer"],
    )
    facts |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    linears = {
        f"{name}.weight": module.weight.data.contiguous()
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and isinstance(module, torch.nn.Linear)
    }
    out = Path(request.out)
    save_file(linears, out / WEIGHTS)
    (out / IDS).write_text(json.dumps(shown))
    (out / RESULT).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
