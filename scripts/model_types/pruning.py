"""A saved model pruned through Secateur's public interface, with token ids that are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from secateur import api
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter


@dataclass(frozen=True)
class Setting:
    """One way to prune. ``batch``: sequences at once."""

    method: str
    pattern: str
    propagation: str
    batch: int = 4

    def __str__(self) -> str:
        return f"{self.method} {self.pattern} {self.propagation}"

    @property
    def group(self) -> int | None:
        """M of N:M."""
        return None if self.pattern == "unstructured" else int(self.pattern.partition(":")[2])


@dataclass(frozen=True)
class Pruned:
    """``records``: Secateur's own account, one for each linear. ``left``: what it says of weights that stay dense."""

    folder: Path
    records: list[dict[str, object]]
    left: list[str]


class Progress(Reporter):
    """Notes whether pruning has begun: what is refused before that is refused beforehand."""

    def __init__(self) -> None:
        self.begun = False

    def progress(self, what: str, done: int, total: int) -> None:
        self.begun |= what == "blocks"


def add_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of as many words as the model knows: Secateur asks for one, though the ids are given."""
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


def calibration_set(model: Path, sequences: Sequence[Sequence[int]], out: Path) -> Path:
    return api.import_set([{"input_ids": list(tokens)} for tokens in sequences], str(model), out).folder


def prune(model: Path, calibration: Path, setting: Setting, out: Path, progress: Progress) -> Pruned:
    """Raises what Secateur raises."""
    recipe = load_recipe(
        None,
        [
            f"calibration.source={calibration}",
            f"pruning.method={setting.method}",
            f"pruning.pattern={setting.pattern}",
            f"pruning.propagation={setting.propagation}",
            f"pruning.batch_size={setting.batch}",
            "pruning.min_expert_tokens=1",
            "dtype=float32",
            "device=cpu",
            "evaluation.enabled=false",
        ],
        {"model": str(model)},
    )
    result = api.prune(recipe, out=out, reporter=progress)
    lines = (result.folder / "pruning.jsonl").read_text().splitlines()
    records = [record for line in lines for record in json.loads(line)["linears"]]
    return Pruned(result.folder, records, list(result.manifest["warnings"]))
