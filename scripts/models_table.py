"""Which models Secateur prunes: every type of causal LM that transformers has, made small, pruned and held against an oracle.

    python scripts/models_table.py --out docs/models.md
    python scripts/models_table.py --only llama mixtral --methods wanda

Every type runs in a process of its own with a limit of time and memory. Its row is kept in ``rows.jsonl`` of the working
folder, so that the same command goes on where it stopped; rows of other code or other versions are made again.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers

import secateur
from model_types.build import all_types
from model_types.page import page
from model_types.pruning import Setting
from model_types.trial import Row, settings, try_type
from secateur.journal import Journal
from secateur.models.loading import quiet_transformers

SECONDS, GIBIBYTES = 900, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page to write; without it the totals are printed")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="types to try, of those that transformers has")
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"], choices=["wanda", "sparsegpt"])
    parser.add_argument("--jobs", type=int, default=1, help="types at once")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit for one type")
    parser.add_argument("--work", type=Path, default=Path("secateur-store/model-types"))
    asked = parser.parse_args()
    types, ways = asked.only or all_types(), settings(asked.methods)
    unknown = sorted(set(types) - set(all_types()))
    if unknown:
        parser.error(f"transformers {transformers.__version__} has no causal LM of the type {', '.join(unknown)}.")
    rows = try_types(types, ways, asked.work, asked.jobs, asked.seconds)
    written = page(rows, ways, " ".join(["python", *sys.argv]))
    if asked.out:
        asked.out.write_text(written)
    print(written[written.index("| outcome") : written.index("| type |")])


def try_types(types: Sequence[str], ways: Sequence[Setting], work: Path, jobs: int, seconds: int) -> list[Row]:
    """The rows of all types, in order; those that the journal in ``work`` has are not made again."""
    work.mkdir(parents=True, exist_ok=True)
    journal = Journal(work / "rows.jsonl")
    stamp = {"code": code_digest(), "settings": [str(way) for way in ways]}
    rows = {entry["row"]["model_type"]: Row(**entry["row"]) for entry in journal.entries if entry["stamp"] == stamp}
    waiting = [one for one in types if one not in rows]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model_types.trial"])
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda one: in_process(context, one, ways, work, seconds), waiting):
            journal.append({"stamp": stamp, "row": asdict(row)})
            rows[row.model_type] = row
            print(
                f"{len(rows)}/{len(types)} {row.model_type}: {row.outcome} {row.detail[:200]}",
                file=sys.stderr,
                flush=True,
            )
    return [rows[one] for one in types]


def in_process(context: Any, model_type: str, ways: Sequence[Setting], work: Path, seconds: int) -> Row:
    """The row of a type, tried in a process of its own."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, model_type, work / model_type, list(ways)))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return Row(model_type, detail=f"no end after {seconds} seconds", seconds=seconds)
    except EOFError:
        process.join()
        return Row(model_type, detail=f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _child(sender: Connection, model_type: str, place: Path, ways: Sequence[Setting]) -> None:
    limit = GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.filterwarnings("ignore")
    quiet_transformers()
    torch.set_num_threads(1)
    sender.send(try_type(model_type, place, ways))


def code_digest() -> str:
    """Of all that decides a row: Secateur's sources, these, and the versions of the libraries."""
    digest = hashlib.sha256(f"{transformers.__version__} {torch.__version__}".encode())
    for folder in (Path(secateur.__file__).parent, Path(__file__).parent / "model_types"):
        for path in _sources(folder):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folder: Path) -> Iterable[Path]:
    return sorted(folder.rglob("*.py"))


if __name__ == "__main__":
    main()
