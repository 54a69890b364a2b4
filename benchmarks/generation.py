"""What self-generation costs beside plain model.generate and a plain scoring pass, on the bundled model.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--texts 32] [--length 256] [--batch 32] [--repeats 3] [--out FILE]

Both write as many texts from the same prompts with the same sampling, in batches of the same size, score every text and
keep those below the perplexity that a fifth of them exceeds. Their seeds are the same, so they write the same texts, or
the benchmark ends with an error. In every repeat (a seed of its own) the two take turns, the first one changing. Tokens are generated ones, up to a text's end; a ratio is taken within a repeat, above 1 where Secateur
is faster. CPU seconds are those of all threads, and on a machine shared with others the steadier clock.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from report import shown, spread
from transformers import GenerationConfig

from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.generation.engine import Sampling, batch_seed
from secateur.generation.self_generation import Goal, SelfGeneration
from secateur.generation.styles.base import Material
from secateur.generation.transformers_engine import TransformersEngine
from secateur.journal import Journal
from secateur.models.loading import load_model, quiet_transformers
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import Recipe

DROP = 0.2


@dataclass(frozen=True)
class Work:
    """What both programs do."""

    texts: int
    length: int
    batch: int
    sampling: Sampling


@dataclass(frozen=True)
class Done:
    """What one run wrote, each text with its score."""

    texts: list[tuple[int, ...]]
    generated: list[int]
    logprobs: list[float]

    def tokens(self, kept_only: bool) -> int:
        order = sorted(range(len(self.logprobs)), key=lambda index: -self.logprobs[index])
        kept = order[: len(order) - math.floor(len(order) * DROP)] if kept_only else order
        return sum(self.generated[index] for index in kept)


def secateur(work: Work, stage: Any, material: Material, engine: TransformersEngine, seed: int) -> Done:
    context = ModelContext(stage.recipe, stage.model.folder, stage.tokenizer)
    prompts = stage.style.prompts(Material(**{**vars(material), "seed": seed}))
    filters = [PerplexityFilter(DROP)]
    writer = SelfGeneration(
        engine, stage.style, prompts, work.length, work.sampling, filters, work.batch, seed, material, context
    )
    with tempfile.TemporaryDirectory() as folder:
        found = writer.run(Goal(0, generations=work.texts), Journal(Path(folder) / "journal"))
    return Done(
        [sample.token_ids for sample in found.samples],
        [len(sample.token_ids) - sample.prompt_tokens for sample in found.samples],
        [sample.mean_logprob or 0.0 for sample in found.samples],
    )


def plain(work: Work, stage: Any, material: Material, engine: TransformersEngine, seed: int) -> Done:
    """The same by hand: generate, then a forward over what was written."""
    model: Any = engine.model
    end, sampling = engine.end_tokens, work.sampling
    prompts = islice(stage.style.prompts(Material(**{**vars(material), "seed": seed})), work.texts)
    done = Done([], [], [])
    while batch := list(islice(prompts, work.batch)):
        torch.manual_seed(batch_seed(seed, len(done.generated)))  # as Secateur does: the same texts are written
        prompt = torch.tensor(batch)
        config = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=work.length - prompt.shape[1],
            eos_token_id=end,
            pad_token_id=end[0],
        )
        with torch.inference_mode():
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
            ended = torch.isin(ids[:, prompt.shape[1] :], torch.tensor(end)).int()
            there = torch.cat([torch.ones_like(prompt), ended.cumsum(1) - ended == 0], dim=1)
            logits = model(ids, attention_mask=there, use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).view(len(ids), -1)
        counted = there[:, 1:]
        done.logprobs.extend((-(losses * counted).sum(1) / counted.sum(1)).tolist())
        done.texts.extend(tuple(row[:count]) for row, count in zip(ids.tolist(), there.sum(1).tolist(), strict=True))
        done.generated.extend((there.sum(1) - prompt.shape[1]).tolist())
    return done


PROGRAMS: dict[str, Callable[..., Done]] = {"plain": plain, "secateur": secateur}


def measure(work: Work, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Tokens and kept tokens per second of each program and repeat, by both clocks."""
    stage = plan_calibration(Recipe(device="cpu"))
    material = stage.material
    engine = TransformersEngine(load_model(stage.model.folder, "cpu"))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for name in PROGRAMS:  # what is done once only is done before the clock starts
        PROGRAMS[name](Work(2, 16, 2, work.sampling), stage, material, engine, 0)
    for repeat in range(repeats):
        written: list[Done] = []
        for name in list(PROGRAMS) if repeat % 2 == 0 else reversed(PROGRAMS):
            wall, cpu = time.perf_counter(), time.process_time()
            done = PROGRAMS[name](work, stage, material, engine, repeat)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            written.append(done)
            tokens, kept = done.tokens(kept_only=False), done.tokens(kept_only=True)
            results[name].append(
                {"tokens": tokens, "kept": kept, "wall_seconds": wall, "cpu_seconds": cpu, "tokens_per_cpu_second": tokens / cpu,
                 "kept_per_cpu_second": kept / cpu, "tokens_per_wall_second": tokens / wall}
            )  # fmt: skip
        one, other = written
        if one.texts != other.texts:
            raise SystemExit(f"The two wrote different texts in repeat {repeat}, so their times say nothing.")
        apart = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
        for name in PROGRAMS:
            results[name][-1]["scores_apart"] = apart
    return results


def summarise(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians and spreads, and the ratios of Secateur to plain within each repeat."""
    rates = ("tokens_per_cpu_second", "kept_per_cpu_second", "tokens_per_wall_second")
    found: dict[str, Any] = {
        name: {rate: spread([run[rate] for run in runs]) for rate in rates} for name, runs in results.items()
    }
    pairs = list(zip(results["secateur"], results["plain"], strict=True))
    found["ratio"] = {rate: spread([one[rate] / other[rate] for one, other in pairs]) for rate in rates}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens of a text, its prompt included")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the numbers there, as JSON")
    asked = parser.parse_args()
    quiet_transformers()
    work = Work(asked.texts, asked.length, asked.batch, Sampling())
    results = measure(work, asked.repeats)
    summary = summarise(results)
    versions = {name: version(name) for name in ("torch", "transformers", "secateur")}
    print(
        f"{work.texts} texts of {work.length} tokens in batches of {work.batch}, {asked.repeats} repeats, "
        f"{torch.get_num_threads()} threads; torch {versions['torch']}, transformers {versions['transformers']}\n"
    )
    print(f"{'':10} {'tokens / CPU s':>24} {'kept tokens / CPU s':>24} {'tokens / wall s':>24}")
    for name, rates in summary.items():
        digits = 2 if name == "ratio" else 0
        print(f"{name:10} " + " ".join(f"{shown(rate, digits):>24}" for rate in rates.values()))
    apart = max(run["scores_apart"] for run in results["plain"])
    print(
        f"\nThe same texts; their scores (nats a token, in the dtype the model is stored in) differ by at most {apart:.1e}."
    )
    if asked.out:
        about = {"asked": vars(asked) | {"out": None}, "versions": versions, "machine": platform.machine()}
        asked.out.write_text(json.dumps(about | {"summary": summary, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
