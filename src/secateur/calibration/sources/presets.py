"""The corpora that have a name: where they are on the Hub, how a row becomes text, and how the paper cuts their like.

A name always means the same data set, subset and split. ``revision`` pins its content too; where it is ``None``, what
the Hub serves on the day is read (``calibration.revision`` pins it), and the set that was made records its own digest.
All are files that ``datasets`` reads by itself (parquet or JSON lines): none needs a loading script.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.calibration.packing import PaperRule
from secateur.calibration.sources.formats import Chat, Column, Format, Instruction, QuestionAnswer


@dataclass(frozen=True)
class Preset:
    """``path`` and ``subset`` on the Hub; ``train`` and ``heldout``: its splits for calibration and for evaluation
    (``None``: it has none). ``files``: a glob of JSON lines to read in place of what the data set declares.

    ``paper``: how the paper cuts such text, by single long documents or joined (arXiv 2410.17711, its program).
    ``folders``: other names that a local copy may have.
    """

    name: str
    summary: str
    path: str
    subset: str | None = None
    train: str = "train"
    heldout: str | None = None
    revision: str | None = None
    format: Format = field(default_factory=Column)
    files: str | None = None
    paper: PaperRule = "paper-document"
    folders: tuple[str, ...] = ()


_LIST = (
    Preset(
        "c4",
        "C4, English: cleaned Common Crawl, what most pruning papers calibrate on.",
        "allenai/c4",
        "en",
        heldout="validation",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        folders=("c4_en",),
    ),
    Preset(
        "wikipedia",
        "Wikipedia, English, of 2023-11-01: clean, short articles.",
        "wikimedia/wikipedia",
        "20231101.en",
        revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
        paper="paper-joined",
        folders=("wikipedia_en", "wiki"),
    ),
    Preset(
        "slimpajama",
        "SlimPajama, a sample of 6B tokens: deduplicated RedPajama.",
        "DKYoon/SlimPajama-6B",
        heldout="validation",
        revision="b5f90f419b7489cdba26fdbc8c022fcb5562f968",
    ),
    Preset(
        "dclm",
        "DCLM-baseline: what DCLM-7B was trained on.",
        "mlfoundations/dclm-baseline-1.0-parquet",
        folders=("dclm_baseline",),
    ),
    Preset(
        "fineweb",
        "FineWeb, a sample of 10B tokens: filtered Common Crawl.",
        "HuggingFaceFW/fineweb",
        "sample-10BT",
        revision="9bb295ddab0e05d785b879661af7260fed5140fc",
    ),
    Preset(
        "fineweb-edu",
        "FineWeb-Edu, a sample of 10B tokens: its educational pages.",
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        folders=("fineweb_edu",),
    ),
    Preset(
        "pile",
        "The Pile, deduplicated: 22 kinds of text, code and papers among them.",
        "EleutherAI/the_pile_deduplicated",
        folders=("the_pile",),
    ),
    Preset(
        "redpajama",
        "RedPajama, the 1B sample: an open copy of LLaMA's training mixture.",
        "togethercomputer/RedPajama-Data-1T-Sample",
        files="*_sample.jsonl",
    ),
    Preset(
        "openwebtext",
        "OpenWebText: pages linked from Reddit, as for GPT-2.",
        "Skylion007/openwebtext",
        revision="79d93d786212f7344586290adb811d4ae6a1762c",
        folders=("owt",),
    ),
    Preset(
        "wikitext2",
        "WikiText-2, raw: the usual perplexity text; calibrate on its training split only.",
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        heldout="test",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        paper="paper-joined",
        folders=("wikitext",),
    ),
    Preset(
        "alpaca",
        "Alpaca: instructions with short answers.",
        "tatsu-lab/alpaca",
        revision="dce01c9b08f87459cf36a430d809084718273017",
        format=Instruction(),
        paper="paper-joined",
        folders=("instruct_alpaca",),
    ),
    Preset(
        "dolly",
        "Dolly: instructions with answers written by people.",
        "databricks/databricks-dolly-15k",
        revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        format=Instruction("instruction", "context", "response"),
        paper="paper-joined",
        folders=("instruct_dolly_hhrlhf", "instruct_dolly"),
    ),
    Preset(
        "gsm8k",
        "GSM8K: sums in words with the way to the answer.",
        "openai/gsm8k",
        "main",
        heldout="test",
        revision="740312add88f781978c0658806c59bc2815b9866",
        format=QuestionAnswer(),
        paper="paper-joined",
        folders=("math_gsm8k",),
    ),
    Preset(
        "ultrachat",
        "UltraChat 200k: conversations of several turns.",
        "HuggingFaceH4/ultrachat_200k",
        train="train_sft",
        heldout="test_sft",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
        format=Chat(),
    ),
    Preset(
        "openr1-math",
        "OpenR1-Math: mathematics with long chains of reasoning.",
        "open-r1/OpenR1-Math-220k",
        "default",
        revision="e4e141ec9dea9f8326f4d347be56105859b2bd68",
        format=Chat(),
    ),
    Preset(
        "openwebmath",
        "OpenWebMath: web pages with mathematics.",
        "open-web-math/open-web-math",
        revision="fde8ef8de2300f5e778f56261843dab89f230815",
        folders=("open_web_math",),
    ),
    Preset(
        "code",
        "CodeParrot, clean: Python files from GitHub.",
        "codeparrot/codeparrot-clean",
        revision="35a59fb025bc0a102f7d96eac09d145b896d487b",
        format=Column("content"),
        folders=("code_python", "codeparrot"),
    ),
    Preset(
        "books",
        "Books in English from Project Gutenberg.",
        "sedthh/gutenberg_english",
        format=Column("TEXT"),
        folders=("books_gutenberg", "gutenberg"),
    ),
    Preset(
        "tinystories",
        "TinyStories: short stories in simple words.",
        "roneneldan/TinyStories",
        heldout="validation",
        revision="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        paper="paper-joined",
    ),
)

PRESETS = {preset.name: preset for preset in _LIST}
