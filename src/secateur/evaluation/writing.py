"""How long, and how repetitive, the texts are that a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secateur.calibration.diversity import repeated
from secateur.calibration.filters.repetition import compression_ratio
from secateur.errors import CalibrationError
from secateur.evaluation.scorer import Scorer
from secateur.generation.engine import Sampling

N = 4


@dataclass(frozen=True)
class Writing:
    """Means over ``texts`` continuations. ``tokens``: new ones, the end token counted; ``ended``: the share that ended
    before the limit; ``repetition``: share of 4-grams of tokens that stood in the continuation before; ``compression``:
    bytes of its text over bytes when compressed (the measures of the repetition filter)."""

    texts: int
    tokens: float
    ended: float
    repetition: float
    compression: float

    def scores(self) -> dict[str, Any]:
        return asdict(self)


def writing(
    scorer: Scorer,
    sequences: Sequence[Sequence[int]],
    count: int,
    prompt_tokens: int,
    tokens: int,
    temperature: float,
    seed: int = 0,
) -> Writing:
    """Continue the first ``prompt_tokens`` of ``count`` of ``sequences``, evenly spread, by at most ``tokens`` tokens.

    Drawn by ``temperature`` alone (0: greedily), with no penalty that would hide repetition. Raises ``CalibrationError``
    when no sequence is that long.
    """
    long = [tuple(sequence[:prompt_tokens]) for sequence in sequences if len(sequence) >= prompt_tokens]
    if not long:
        raise CalibrationError(
            f"No text of the evaluation has {prompt_tokens} tokens to go on from; set evaluation.generations.prompt_tokens lower."
        )
    chosen = [long[index * len(long) // min(count, len(long))] for index in range(min(count, len(long)))]
    plain: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    sampling = Sampling(temperature=temperature, **plain) if temperature else Sampling(greedy=True, **plain)
    samples = scorer.write(chosen, tokens, sampling, seed)
    rows = [list(sample.token_ids[sample.prompt_tokens :]) for sample in samples]
    ratios = [compression_ratio(str(scorer.tokenizer.decode(row, skip_special_tokens=True))) for row in rows]
    return Writing(
        texts=len(rows),
        tokens=sum(map(len, rows)) / len(rows),
        ended=sum(sample.finish == "eos" for sample in samples) / len(rows),
        repetition=repeated(rows, N),
        compression=sum(ratios) / len(ratios),
    )
