"""Writing in segments: the first tokens of a text are drawn otherwise than the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from secateur.calibration.sample import Sample
from secateur.generation.engine import Engine, Sampling, batch_seed


def write_segments(
    engine: Engine, prompts: Sequence[Sequence[int]], length: int, segments: Sequence[tuple[int, Sampling]], seed: int
) -> list[Sample]:
    """Continue ``prompts``: so many tokens with each segment's sampling in turn, the last to ``length`` whatever it says.

    Any engine can: each segment's prompts are what was written so far, less the texts that have ended.
    """
    done: dict[int, Sample] = {}
    going = {index: list(prompt) for index, prompt in enumerate(prompts)}
    for number, (tokens, sampling) in enumerate(segments):
        if not going:
            break
        last = number == len(segments) - 1
        reach = length if last else min(length, max(map(len, going.values())) + tokens)
        found = engine.generate(list(going.values()), reach, sampling, batch_seed(seed, number), each=last)
        for index, sample in zip(list(going), found, strict=True):
            going[index] = list(sample.token_ids)
            if last or sample.finish == "eos" or len(sample.token_ids) >= length:
                done[index] = replace(sample, prompt_tokens=len(prompts[index]))
                del going[index]
    return [done[index] for index in range(len(prompts))]
