"""Train the bundled reference model from the CPython standard library of this machine.

    python scripts/train_reference.py --out build/reference --epochs 2
    python scripts/train_reference.py --out build/reference --install src/secateur/models/reference

It trains on a GPU where there is one (not tried so far: the bundled weights were trained on two CPU cores).

A small Llama (grouped-query attention, SwiGLU, tied embeddings) with a byte-level BPE tokenizer, both made from the
``stdlib-train`` texts only (`secateur.calibration.sources.python_texts`). Weight matrices are optimised by Muon, the
rest by AdamW; the learning rate warms up, stays, and falls linearly to zero over the last part of the run. Stop it at
any time and run the same command again: it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.python_texts import StdlibHeldout, StdlibTrain

VOCABULARY, WINDOW, WINDOWS_A_STEP = 4096, 512, 16
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
MUON_RATE, ADAM_RATE, WARMUP_STEPS, DECAY_SHARE = 0.02, 2e-3, 100, 0.4
SEED = 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training texts; encoding adds the begin token, as Llama's tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=WINDOW
    )


def _texts(source: TextSource) -> list[str]:
    return [text for _, text in source.texts()]


def model_config(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """One document each: begin token, text, end token."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]


def windows_of(documents: list[list[int]], seed: int) -> torch.Tensor:
    """``[windows, WINDOW + 1]``: documents in a shuffled order, joined, cut with one token of overlap for the targets."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    stream = torch.tensor([token for index in order for token in documents[index]])
    count = (len(stream) - 1) // WINDOW
    starts = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) * WINDOW
    return stream[starts[:, None] + torch.arange(WINDOW + 1)]


def mean_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Mean cross-entropy per token in nats."""
    model.eval()
    total = 0.0
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        for batch in windows.split(8):
            total += loss_of(model, batch).item() * len(batch)
    model.train()
    return total / len(windows)


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    batch = batch.to(DEVICE)
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def unigram_perplexity(documents: list[list[int]], heldout: torch.Tensor) -> float:
    """Of the held-out targets under the training texts' token frequencies, one added to each count."""
    counts = torch.ones(VOCABULARY, dtype=torch.float64)
    for document in documents:
        counts += torch.bincount(torch.tensor(document), minlength=VOCABULARY)
    log_probability = (counts / counts.sum()).log()
    return math.exp(-log_probability[heldout[:, 1:].flatten()].mean().item())


def learning_rate_factor(step: int, steps: int) -> float:
    decay_start = int(steps * (1 - DECAY_SHARE))
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 1.0 if step < decay_start else (steps - step) / (steps - decay_start)


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    out: Path, train_texts: list[str], heldout_texts: list[str], epochs: float, minutes: float, compiled: bool
) -> None:
    """Tokenizer and model into ``out``, from its checkpoint if it has one; stops at a checkpoint after ``minutes``."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        train_tokenizer(train_texts).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    documents, heldout_documents = encode(tokenizer, train_texts), encode(tokenizer, heldout_texts)
    heldout = windows_of(heldout_documents, SEED)
    epoch_tokens = sum(map(len, documents))
    steps_an_epoch = (epoch_tokens // WINDOW) // WINDOWS_A_STEP
    steps = int(steps_an_epoch * epochs)

    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM(model_config(tokenizer))
    model.to(DEVICE)
    model.train()
    optimizers = optimizers_of(model)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, seconds, curve = 0, 0.0, []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=DEVICE)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds, curve = state["step"], state["seconds"], state["curve"]
    run = torch.compile(model) if compiled else model
    print(f"{epoch_tokens:,} training tokens an epoch; step {step} of {steps}", flush=True)

    started, epoch, windows, recent = time.monotonic() - seconds, -1, torch.empty(0), []
    stop_at = time.monotonic() + minutes * 60
    while step < steps:
        if step // steps_an_epoch != epoch:
            epoch = step // steps_an_epoch
            windows = windows_of(documents, SEED + epoch)
        first = (step % steps_an_epoch) * WINDOWS_A_STEP
        for optimizer, base in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * learning_rate_factor(step, steps)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_of(run, windows[first : first + WINDOWS_A_STEP])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        recent.append(loss.item())
        if step % 20 == 0:
            rate = step * WINDOW * WINDOWS_A_STEP / (time.monotonic() - started)
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {rate:.0f} tokens/s", flush=True)
        if step % 100 == 0 or step == steps:
            held = mean_loss(model, heldout[:96])
            curve.append({"step": step, "train_loss": sum(recent) / len(recent), "heldout_loss": held})
            recent = []
            print(f"step {step} held-out perplexity {math.exp(held):.3f}", flush=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "seconds": time.monotonic() - started,
                "curve": curve,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            if time.monotonic() > stop_at:
                print("stopped; run the same command again to go on", flush=True)
                return
    finish(
        out,
        model,
        heldout,
        documents,
        {"epochs": epochs, "steps": steps, "curve": curve, "seconds": time.monotonic() - started},
    )


def finish(
    out: Path, model: LlamaForCausalLM, heldout: torch.Tensor, documents: list[list[int]], facts: dict[str, object]
) -> None:
    model.bfloat16().save_pretrained(out)
    saved: Any = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    saved.to(DEVICE)
    perplexity, unigram = math.exp(mean_loss(saved, heldout)), unigram_perplexity(documents, heldout)
    facts |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_files": len(documents),
        "tokens_an_epoch": sum(map(len, documents)),
        "heldout_tokens": heldout[:, 1:].numel(),
        "heldout_perplexity": perplexity,
        "unigram_perplexity": unigram,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "window": WINDOW,
        "tokens_a_step": WINDOW * WINDOWS_A_STEP,
        "seed": SEED,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"held-out perplexity {perplexity:.3f}, of a unigram model {unigram:.1f}", flush=True)


def install(out: Path, target: Path) -> None:
    """Copy what the package carries: configuration, weights, tokenizer, the record of the training."""
    target.mkdir(parents=True, exist_ok=True)
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in [*names, "training.json"]:
        shutil.copyfile(out / name, target / name)
    (target / "README.md").write_text(card(json.loads((out / "training.json").read_text())))


def card(facts: dict[str, Any]) -> str:
    """The model card, all figures from the training's own record."""
    curve = [
        entry for number, entry in enumerate(facts["curve"], 1) if number % 2 == 0 or number == len(facts["curve"])
    ]
    rows = [
        f"| {e['step']} | {e['step'] * facts['tokens_a_step'] / 1e6:.1f} M | {e['train_loss']:.3f} | {e['heldout_loss']:.3f} |"
        for e in curve
    ]
    return CARD.format(
        **{name: value for name, value in facts.items() if name != "curve"},
        ratio=facts["unigram_perplexity"] / facts["heldout_perplexity"],
        tokens=facts["steps"] * facts["tokens_a_step"],
        hours=facts["seconds"] / 3600,
        curve="\n".join(rows),
    )


CARD = """---
license: psf-2.0
language: [en, code]
pipeline_tag: text-generation
tags: [secateur, python]
---

# The reference model of Secateur

A small language model of Python source code, carried in the package so that the main job runs without a network and so
that questions about training data can be asked of a model whose training data is known. It is a test object, not an
assistant.

| | |
|---|---|
| architecture | Llama: 8 blocks, width 256, 4 heads (2 key-value), SwiGLU 704, tied embeddings, {window} positions |
| parameters | {parameters:,}, stored in bf16 |
| tokenizer | byte-level BPE, 4,096 entries, trained on the training files |
| training text | the Python files of CPython {python}'s standard library, {training_files:,} files, {tokens_an_epoch:,} tokens |
| held out | one file in 20, by the SHA-256 of its path; {heldout_tokens:,} tokens |
| left out | `site-packages`, `pydoc_data` (the prose source), `encodings` (near-identical tables), files past 1 MB or not UTF-8 |
| trained for | {epochs:g} epochs, {steps:,} steps of {tokens_a_step:,} tokens, {tokens:,} tokens in all, {hours:.1f} h on 2 CPU cores (shared with other work) |
| optimiser | Muon 0.02 for matrices, AdamW 0.002 for the rest; warm-up 100 steps, linear decay over the last 40 %; bf16 autocast; seed {seed} |
| held-out perplexity | **{heldout_perplexity:.3f}** by token over windows of {window} |
| of a unigram model | {unigram_perplexity:.1f}, {ratio:.0f} times as high |
| licence of the training text | PSF-2.0 (Python Software Foundation License); the weights are given under the same terms |

The rule that makes the files is `secateur.calibration.sources.python_texts`; every figure here is from `training.json`,
which the training wrote. To train it again:

```sh
python scripts/train_reference.py --out build/reference --epochs {epochs:g}
python scripts/train_reference.py --out build/reference --install src/secateur/models/reference
```

## Loss (nats per token)

| step | tokens | training | held out (96 windows) |
|---|---|---|---|
{curve}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/reference"))
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop at a checkpoint after this long")
    parser.add_argument(
        "--eager", action="store_true", help="no torch.compile (which needs a C++ compiler): half as fast"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--install", type=Path, help="copy a finished training into the package instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.install:
        install(arguments.out, arguments.install)
    else:
        texts = _texts(StdlibTrain()), _texts(StdlibHeldout())
        train(arguments.out, *texts, arguments.epochs, arguments.minutes, not arguments.eager)


if __name__ == "__main__":
    main()
