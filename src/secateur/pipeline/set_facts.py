"""What the manifest of a calibration set says besides its counts: which tokenizer its ids are of, and what is odd."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from secateur.generation.self_generation import Generated
from secateur.models.configuration import vocabulary_size

FEW_PROMPTS = 8
"""Fewer distinct prompts than this, for four times as many generations or more, are worth a warning."""


def vocabulary_facts(model: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How many ids the model knows, and a digest of what they stand for: a set fits models that agree in both."""
    return {
        "vocabulary": vocabulary_size(model),
        "tokenizer": tokenizer_digest(tokenizer),
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what every id stands for. It is the same for the same tokenizer saved by another version."""
    return sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def generation_facts(generated: Generated) -> dict[str, Any]:
    """Counts of what the model wrote."""
    samples = generated.samples
    prompts = {sample.token_ids[: sample.prompt_tokens] for sample in samples}
    return {
        "generations": len(samples),
        "generations_dropped": sum(not verdict.keep for verdict in generated.verdicts),
        "generations_ended_by_model": sum(sample.finish == "eos" for sample in samples),
        "tokens_generated": sum(len(sample.token_ids) - sample.prompt_tokens for sample in samples),
        "distinct_prompts": len(prompts),
    }


def warnings_of(accounts: Mapping[str, Mapping[str, Any]], prompted: bool) -> list[str]:
    """Sentences about sources that gave less than it seems. ``accounts``: by source; ``prompted``: generations start from
    texts, so their prompts should differ."""
    found = []
    for name, account in accounts.items():
        windows, distinct = account.get("windows", 0), account.get("distinct_windows", 0)
        if distinct < windows:
            found.append(
                f"Of {windows:,} samples from {name!r} only {distinct:,} are distinct: it holds less than it seems, and "
                "the statistics count what repeats as often as it is there."
            )
        documents, different = account.get("documents_read", 0), account.get("distinct_documents", 0)
        if documents > 1 and different * 2 <= documents:
            found.append(f"Of {documents:,} documents read from {name!r} only {different:,} are distinct.")
        generations, prompts = account.get("generations", 0), account.get("distinct_prompts", 0)
        if prompted and 0 < prompts < FEW_PROMPTS and 4 * prompts <= generations:
            found.append(
                f"The {generations:,} generations start from only {prompts:,} distinct prompts; a larger source of prefixes, "
                "prefix_unit=paragraph or longer prefixes give more variety."
            )
    return found
