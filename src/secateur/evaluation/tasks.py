"""The evaluation tasks of our own, by name, without importing torch. All other names are lm-eval's (``harness``)."""

from __future__ import annotations

from secateur.registry import Entry, Registry

_HERE = "secateur.evaluation"

TASKS = Registry(
    "task",
    [
        Entry("next-line", f"{_HERE}.cloze:NextLine", "Pick the true next line among distractors of the same file."),
        Entry("parses", f"{_HERE}.completion:Parses", "Does a function that the model completed parse?"),
        Entry("wikitext2", f"{_HERE}.perplexity_task:WikiText2", "Perplexity, WikiText-2 test, windows of 2,048."),
        Entry("alpaca", f"{_HERE}.perplexity_task:Alpaca", "Mean perplexity of Alpaca's texts (the paper's)."),
    ],
)

PAPER = "paper"

GROUPS: dict[str, dict[str, int]] = {
    PAPER: {
        "boolq": 0,
        "winogrande": 0,
        "piqa": 0,
        "hellaswag": 0,
        "arc_easy": 0,
        "arc_challenge": 0,
        "mmlu": 5,
    }
}
"""Several tasks under one name, each with the number of examples shown (Ji et al., arXiv 2410.17711, section 3.1)."""
