"""How likely the model finds the set's text."""

from __future__ import annotations

import math

import numpy as np

from secateur.diagnosis.base import Family, Finding, Quantity, Subject
from secateur.errors import NumericsError

LOSS_AT_MOST = 700.0  # exp of more is no fp64 number


def _look(subject: Subject) -> Finding:
    samples = [sample for sample in subject.samples if subject.context.counted(sample) > 0]
    if not samples:
        return Finding()
    means = subject.context.mean_logprobs(samples)
    if not all(map(math.isfinite, means)):
        raise NumericsError(
            f"{sum(not math.isfinite(value) for value in means)} of {len(samples)} samples have no finite perplexity: the "
            "model's outputs may not be finite in this dtype. Compute in a wider one (--set dtype=float32)."
        )
    weights = [subject.context.counted(sample) for sample in samples]
    total = math.fsum(mean * weight for mean, weight in zip(means, weights, strict=True))
    each = sorted(math.exp(min(-mean, LOSS_AT_MOST)) for mean in means)
    low, middle, high = np.quantile(each, [0.1, 0.5, 0.9]).tolist()
    share = subject.options.min_k
    values = {
        "perplexity": math.exp(min(-total / sum(weights), LOSS_AT_MOST)),
        "perplexity_median": middle,
        "perplexity_p10": low,
        "perplexity_p90": high,
        "perplexity_spread": math.log(high / low),
        "min_k_plus": _mean(subject.context.min_k(samples, share, plus=True)),
        "min_k": _mean(subject.context.min_k(samples, share, plus=False)),
    }
    return Finding(values, {"perplexities": [round(value, 4) for value in each]})


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


LIKELIHOOD = Family(
    "Likelihood under the model",
    {
        "perplexity": Quantity(
            "perplexity", "exp(-mean log p) over all tokens after the begin token, or each sample's first"
        ),
        "perplexity_median": Quantity("median sample", "perplexity of the median sample"),
        "perplexity_p10": Quantity("10 % quantile", "a tenth of the samples have a lower perplexity"),
        "perplexity_p90": Quantity("90 % quantile", "a tenth of the samples have a higher perplexity"),
        "perplexity_spread": Quantity("log spread", "log of the 90 % quantile over the 10 % quantile"),
        "min_k_plus": Quantity(
            "Min-K %++",
            "mean over samples: log p of the K % least likely tokens, standardised by mean and deviation of log p under the "
            "model's own distribution (Zhang et al. 2024, arXiv 2404.02936); text the model sampled itself scores high by "
            "construction",
        ),
        "min_k": Quantity(
            "Min-K %",
            "mean over samples: mean log p of the K % least likely tokens (Shi et al. 2023, arXiv 2310.16789)",
        ),
    },
    _look,
)
"""Cost: one forward for the perplexities, one more for each Min-K."""
