"""Train an English model of the bundled one's size and shape, on texts of stated shares; its weights are not committed.

    python scripts/train_english.py DATA --out build/english --epochs 2

DATA has a folder for each kind of text with ``train.jsonl`` and ``heldout.jsonl`` (``.gz`` or not), one document a line under
``text``. The shares are of characters; documents are taken in the order of their hash, cut into pieces of at most
``PIECE`` characters, until a kind's share is full; what it took is in
``train.jsonl`` and ``heldout.jsonl`` beside the model. Stop it at any time and run the same command again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

import train_reference

SHARES = {
    "books": (0.40, ["books_gutenberg"]),
    "web": (0.20, ["c4", "openwebtext"]),
    "encyclopaedia": (0.05, ["wikipedia_en"]),
    "stories": (0.20, ["tinystories"]),
    "code": (0.15, ["code_python"]),
}
CHARACTERS = {"train": 31_000_000, "heldout": 2_000_000}
PIECE = 20_000


def pieces(folder: Path, split: str) -> Iterator[str]:
    """The first piece of every document, in the order of the documents' hashes; then the second of each, and so on."""
    path = next(path for path in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") if path.exists())
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    documents.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    for start in range(0, max(map(len, documents)), PIECE):
        yield from (text[start : start + PIECE] for text in documents if len(text) > start)


def texts_of(data: Path, split: str) -> list[str]:
    """The pieces of every kind, each kind as far as its share goes. Raises ``SystemExit`` when a kind has too little."""
    found: list[str] = []
    for kind, (share, folders) in SHARES.items():
        missing = round(CHARACTERS[split] * share)
        for number, folder in enumerate(folders):
            asked = left = missing // (len(folders) - number)
            for piece in pieces(data / folder, split):
                if left <= 0:
                    break
                found.append(piece[:left])
                left -= len(found[-1])
            missing -= asked - left
            print(f"{split} {kind}: {asked - left:,} characters of {folder}", flush=True)
        if missing:
            raise SystemExit(f"{', '.join(folders)} in {data}: {missing:,} characters of {kind} are missing.")
    return found


def kept(out: Path, split: str, texts: list[str]) -> list[str]:
    """``texts``, written to ``out`` for studies to calibrate or to evaluate on."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/english"))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop at a checkpoint after this long")
    parser.add_argument("--eager", action="store_true", help="no torch.compile (which needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    train, heldout = (kept(asked.out, split, texts_of(asked.data, split)) for split in CHARACTERS)
    train_reference.train(asked.out, train, heldout, asked.epochs, asked.minutes, not asked.eager)


if __name__ == "__main__":
    main()
