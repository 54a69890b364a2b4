"""A study end to end on a tiny model: cells, sharing, controls, outputs, resumption; what is asked wrongly."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conftest import wait_for_a_line
from secateur.cli.main import main
from secateur.errors import RecipeError, SecateurError, StoreError, UsageError
from secateur.evaluation.metrics import flatten
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import read_manifest
from secateur.studies import run as run_module
from secateur.studies import scores, tasks
from secateur.studies.folder import JOURNAL
from secateur.studies.plan import plan_study
from secateur.studies.pool import ProcessPool
from secateur.studies.run import run_study
from secateur.studies.study_file import load_study, looks_like_study
from secateur.studies.tasks import CellTask, perform

STUDY = """
question: Does the source matter?
recipe:
  model: {model}
  device: cpu
  calibration: {{samples: 6, length: 24}}
  pruning: {{propagation: dense, sparsity: 0.6}}
  evaluation: {{text: {text}, protocol: concat-32, limit: 4}}
axes:
  source:
    words: {{calibration.source: {text}}}
    noise: {{calibration.source: random-tokens}}
  method: {{path: pruning.method, values: [wanda, sparsegpt]}}
repeats: 3
controls: [dense, magnitude, random tokens]
metrics: [kl]
comparisons:
  - {{kind: difference, axis: source, baseline: noise, claim: better}}
  - {{kind: effects, axis: source, against: method}}
"""


MORE_SOURCES = "".join(f"    more {size}: {{calibration.samples: {size}}}\n" for size in (2, 3, 4))


class Noting(Reporter):
    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, what, done, total):
        self.steps.append((what, done, total))


@pytest.fixture
def study_file(llama, text_file, tmp_path):
    """Write a study; ``changes``: pieces of ``STUDY`` to replace."""

    def write(changes: dict[str, str] | None = None, name: str = "study.yaml") -> str:
        text = STUDY.format(model=llama, text=text_file)
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def run(study_file, tmp_path):
    """Run a study in this process; returns the result and what was told."""

    def call(changes=None, store=tmp_path / "store", workers=0, **options):
        reporter = Noting()
        found = run_study(plan_study(load_study(study_file(changes))), None, store, reporter, workers, **options)
        return found, reporter

    return call


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "results.parquet").to_pylist()


def test_two_methods_two_sources_three_seeds(run, study_file, tmp_path, monkeypatch):
    passes, made = [], []
    prune, generate = tasks.api.prune_together, tasks.api.generate
    monkeypatch.setattr(
        tasks.api, "prune_together", lambda recipes, *a: passes.append(len(recipes)) or prune(recipes, *a)
    )
    monkeypatch.setattr(tasks.api, "generate", lambda recipe, **o: made.append(recipe.seed) or generate(recipe, **o))
    found, told = run()
    assert found.failed == {}
    # 2 x 2 x 3 cells, dense, magnitude; the random-tokens control is the label noise.
    assert found.done == 14
    assert told.steps[-1] == ("cells", 14, 14)
    assert sorted(passes) == [1, 2, 2, 2, 2, 2, 2]  # magnitude alone; methods share a pass over each set
    assert sorted(made) == [0, 0, 1, 1, 2, 2]

    rows = rows_of(found.folder)
    perplexity = [row for row in rows if row["metric"] == "perplexity"]
    own = [row for row in perplexity if not row["control"]]
    assert len(own) == 12
    assert {(row["source"], row["method"], row["seed"]) for row in own} == {
        (source, method, seed)
        for source in ("words", "noise")
        for method in ("wanda", "sparsegpt")
        for seed in range(3)
    }
    controls = {row["control"]: row for row in perplexity if row["control"] in ("dense", "magnitude")}
    assert controls["dense"]["source"] == controls["dense"]["method"] == ""
    assert controls["dense"]["seed"] is None
    assert controls["dense"]["pruned_digest"] is None
    assert controls["magnitude"]["sparsity_reached"] == pytest.approx(0.6, 0.03)
    noise = [row for row in perplexity if row["control"] == "random tokens"]
    assert {(row["source"], row["method"]) for row in noise} == {("", "wanda"), ("", "sparsegpt")}
    assert {row["set_digest"] for row in noise} == {row["set_digest"] for row in own if row["source"] == "noise"}
    assert all(
        row["seconds"] > 0 and row["peak_gib"] > 0 and row["sparsity_reached"] == pytest.approx(0.6, 0.03)
        for row in own
    )
    with (found.folder / "results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(rows)

    study = read(found.folder, "study.json")
    assert study["axes"][0]["labels"] == ["words", "noise"]
    assert study["axes"][0]["values"] is None
    assert study["metric"] == {"name": "perplexity", "better": "lower"}
    assert study["cost"]["cells"] == study["cost"]["done"] == 14
    answers = read(found.folder, "answers.json")
    assert [(one["kind"], one["metric"], one["primary"]) for one in answers] == [
        ("difference", "perplexity", True),
        ("effects", "perplexity", False),
        ("difference", "kl", False),
        ("effects", "kl", False),
    ]
    by = {(row["source"], row["method"], row["seed"]): row["value"] for row in own}
    pair = answers[0]["groups"][0]["pairs"][1]
    assert (pair["a"], pair["b"]) == pytest.approx((by["words", "wanda", 1], by["noise", "wanda", 1]))
    linears = pq.read_table(found.folder / "linears.parquet").to_pylist()
    assert {(row["block"], row["linear"]) for row in linears} >= {(0, "mlp.down_proj"), (1, "self_attn.q_proj")}
    masks = read(found.folder, "masks.json")["kinds"]
    same = [one["jaccard"] for one in masks if one["name"] == "other seed"]
    other = [one["jaccard"] for one in masks if one["name"] == "other source"]
    assert len(same) == 4
    assert len(other) == 2
    assert 0.42 < max(other) < min(same) < 1  # by chance 0.43
    assert "quick" in read(found.folder, "samples.json")["words"]["kept"][0]
    assert (found.folder / "study.yaml").read_text() == Path(study_file()).read_text()
    assert read_manifest(found.folder)["kind"] == "study"
    assert not list((tmp_path / "store").glob("pruned/*"))
    assert not list((tmp_path / "store").glob("cells/*/model"))

    passes.clear()
    again, _ = run()
    assert not passes
    assert again.answers == found.answers


SMALL = {
    "values: [wanda, sparsegpt]": "values: [wanda]",
    "repeats: 3": "repeats: 2",
    "controls: [dense, magnitude, random tokens]": "controls: []",
    "  - {kind: effects, axis: source, against: method}\n": "",
}
"""Four cells that share nothing."""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again_it_goes_on_to_the_same_results(run, study_file, tmp_path, stop):
    """Really killed, between two cells; what it had cost by then is counted."""
    path, store = study_file(SMALL), tmp_path / "killed"
    command = [sys.executable, "-m", "secateur", "study", path, "--workers", "0", "--store", str(store), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_a_line(process, store, "cells/[!.]*/cell.json")
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    if stop == signal.SIGTERM:
        assert process.returncode == 143
        assert "Terminated. What is finished is kept" in said
        assert "Traceback" not in said
    (folder,) = store.glob("studies/*")
    assert read_manifest(folder) is None
    assert (folder / JOURNAL).read_bytes().count(b"\n") >= 2
    assert (folder / JOURNAL).read_text(encoding="utf-8").count('"cpu_seconds"') >= 1
    times = {path: path.stat().st_mtime_ns for path in store.glob("cells/*/cell.json")}
    assert 1 <= len(times) < 4
    found, _ = run(SMALL, store=store)
    assert found.folder == folder
    assert {path: path.stat().st_mtime_ns for path in times} == times
    calm, _ = run(SMALL)

    def values(folder):
        return [(row["cell"], row["metric"], row["value"]) for row in rows_of(folder)]

    assert values(found.folder) == values(calm.folder)
    assert len(values(calm.folder)) >= 8


def deadly(task, store, tell):
    """The work of a study, but for cells named in the store's file ``deadly``: those kill the process."""
    named = store / "deadly"
    if isinstance(task, CellTask) and named.exists():
        for _, _, recipe in task.cells:
            source, seed = recipe["calibration"]["source"], recipe["seed"]
            if named.read_text() == f"{source} {recipe['pruning']['method']['name']} {seed}":
                os.kill(os.getpid(), signal.SIGKILL)
    return perform(task, store, tell)


def test_a_cell_whose_process_is_killed_fails_alone_and_is_tried_again(run, tmp_path, monkeypatch):
    def pool(state, workers, ray):
        return ProcessPool(2, 1, state.store, state.reporter.note, deadly)

    changes = {key: value for key, value in SMALL.items() if "effects" not in key and "wanda" not in key}
    store = tmp_path / "store"
    store.mkdir()
    (store / "deadly").write_text("random-tokens sparsegpt 1")
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_pool", pool)
        found, told = run(changes, store=store)
    assert len(found.failed) == 1  # wanda of the same pass is there
    assert found.done == 7
    assert all("killed (SIGKILL), as Linux does when memory runs out" in error for error in found.failed.values())
    assert any("each is tried alone" in note for note in told.notes)
    failed = [row for row in rows_of(found.folder) if row["status"] == "failed"]
    assert {(row["source"], row["method"], row["seed"]) for row in failed} == {("noise", "sparsegpt", 1)}
    assert all(row["value"] is None and "SIGKILL" in row["error"] for row in failed)
    assert read(found.folder, "study.json")["cost"]["failed"] == 1
    groups = {group["where"]["method"]: group for group in found.answers[0]["groups"]}
    assert (groups["wanda"]["n"], groups["sparsegpt"]["n"]) == (2, 1)
    (store / "deadly").unlink()
    again, _ = run(changes, store=store)
    assert again.failed == {}
    assert {group["n"] for group in again.answers[0]["groups"]} == {2}


def scripted(monkeypatch, **problems):
    """Inline work where tasks of a kind raise: ``cells`` or ``sets``, each an exception or ``None``."""

    def cells(task, store):
        if problems.get("cells") and task.cells[0][2]["seed"] == 1:
            raise problems["cells"]
        return real(task, store)

    def made(task, store, tell):
        if problems.get("sets") and task.recipe["seed"] == 1:
            raise problems["sets"]
        return really(task, store, tell)

    real, really = tasks._cells, tasks._made
    monkeypatch.setattr(tasks, "_cells", cells)
    monkeypatch.setattr(tasks, "_made", made)


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ({"cells": MemoryError()}, "There was not enough memory .* Take fewer --workers"),
        ({"cells": RuntimeError("CUDA out of memory. Tried")}, "There was not enough memory"),
        ({"cells": ValueError("odd")}, "An unexpected ValueError: odd"),
        ({"sets": SecateurError("No text.")}, "Its calibration set could not be made: No text"),
    ],
)
def test_one_cell_that_fails_does_not_stop_the_rest(run, monkeypatch, problems, message):
    import re

    with monkeypatch.context() as patched:
        scripted(patched, **problems)
        found, told = run(SMALL)
    assert found.done == 2
    assert len(found.failed) == 2
    assert all(re.search(message, error) for error in found.failed.values())
    assert sum(note.startswith("Failed: source") for note in told.notes) == 2
    assert {row["seed"] for row in rows_of(found.folder) if row["status"] == "done"} == {0}


def test_a_full_disk_stops_the_study_and_loses_nothing(run, monkeypatch):
    with monkeypatch.context() as patched:
        scripted(patched, cells=OSError(28, "No space left on device"))
        with pytest.raises(
            StoreError, match=r"The disk is full .*No space left.* [12] of 4 cells are done and kept; mend that and run"
        ):
            run(SMALL)
    done = []
    monkeypatch.setattr(tasks, "_cells", lambda task, store, real=tasks._cells: done.append(task) or real(task, store))
    found, _ = run(SMALL)
    assert found.done == 4
    assert 2 <= len(done) <= 3


def test_another_study_another_version_and_other_things_are_never_overwritten(run, study_file, tmp_path):
    out = tmp_path / "out"

    def plan(changes):
        return plan_study(load_study(study_file(SMALL | changes)))

    run_study(plan({}), out, tmp_path / "store", workers=0)
    with pytest.raises(StoreError, match=r"holds another study: repeats, cells changed since"):
        run_study(plan({"repeats: 3": "repeats: 1"}), out, tmp_path / "store", workers=0)
    first, _, rest = (out / JOURNAL).read_text().partition("\n")
    changed = json.dumps(json.loads(first) | {"format": 0, "secateur": "0.0.9"})
    (out / JOURNAL).write_text(f"{changed}\n{rest}")
    with pytest.raises(
        StoreError, match=r"written by Secateur 0\.0\.9 \(format 0\).* nothing in the folder is changed"
    ):
        run_study(plan({}), out, tmp_path / "store", workers=0)
    assert (out / JOURNAL).read_text() == f"{changed}\n{rest}"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"holds no study \(it has thesis\.tex\)"):
        run_study(plan({}), mine, tmp_path / "store", workers=0)


def test_a_comparison_s_own_metric_must_be_produced_too(run):
    own = "baseline: noise, claim: better, metric: piqa/acc}"
    with pytest.raises(RecipeError, match="no cell produces the metric 'piqa/acc'"):
        run({**SMALL, "baseline: noise, claim: better}": own})


def test_a_cell_without_a_finite_perplexity_is_a_hole_and_stops_nothing(run, monkeypatch):
    real, broken = tasks.score, []

    def score(recipe, model, dense, *rest):
        found = real(recipe, model, dense, *rest)
        if dense is not None and not broken:
            broken.append(model)
            scores = found.scores | {"perplexity": found.scores["perplexity"] | {"value": math.nan}}
            return replace(found, scores=scores, values=flatten(scores))
        return found

    monkeypatch.setattr(tasks, "score", score)
    found, _ = run(SMALL)
    assert (found.done, found.failed) == (4, {})
    rows = [row for row in rows_of(found.folder) if row["metric"] == "perplexity"]
    assert [row["value"] for row in rows].count(None) == 1


def test_a_metric_that_no_cell_produces_is_told_at_the_first_cell(run, tmp_path):
    with pytest.raises(
        RecipeError, match=r"no cell produces the metric 'piqa/acc'; their evaluation gives: .*perplexity"
    ):
        run({**SMALL, "metrics: [kl]": "metrics: [piqa/acc]"})
    assert len(list((tmp_path / "store").glob("cells/*"))) == 1


def test_an_evaluation_text_that_changes_is_read_again_but_not_within_a_study(run, study_file, text_file, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(text_file.read_text())
    changes = {**SMALL, f"evaluation: {{text: {text_file}": f"evaluation: {{text: {own}"}
    before, _ = run(changes)
    plan = plan_study(load_study(study_file(changes)))
    own.write_text("\n".join(reversed(text_file.read_text().splitlines())) + "\n")
    after, _ = run(changes)  # in the same process, which has read the old text
    assert not after.failed
    assert rows_of(after.folder)[0]["evaluation_digest"] != rows_of(before.folder)[0]["evaluation_digest"]
    scores._text_source.cache_clear()  # as in a worker that has read nothing yet
    late = run_study(plan, None, tmp_path / "late", Noting(), 0)
    assert late.failed
    assert "has changed since the study began" in rows_of(late.folder)[0]["error"]


def test_models_are_kept_where_asked_and_found_by_other_studies(run, tmp_path, monkeypatch):
    found, _ = run({**SMALL, "repeats: 3": "repeats: 1\nkeep: true"})
    models = list((tmp_path / "store").glob("pruned/*"))
    assert len(models) == 2
    other, _ = run({**SMALL, "question: Does": "question: Why does"})
    assert other.folder != found.folder
    assert all(model.is_dir() for model in models)  # used, and not taken away


def test_models_of_cells_that_are_there_already_are_kept_where_asked(run, tmp_path):
    before, _ = run({**SMALL, "repeats: 3": "repeats: 1"})
    assert not list((tmp_path / "store").glob("pruned/*"))
    after, _ = run({**SMALL, "repeats: 3": "repeats: 1\nkeep: true"})
    assert after.folder == before.folder
    assert rows_of(after.folder) == rows_of(before.folder)
    assert len(list((tmp_path / "store").glob("pruned/*"))) == 2
    run({**SMALL, "repeats: 3": "repeats: 1\nkeep: true"})
    assert len(list((tmp_path / "store").glob("pruned/*"))) == 2


def test_a_set_chosen_by_another_set_of_the_study(run, tmp_path):
    matched = "    noise: {calibration.source: random-tokens}\n    like noise: {calibration.source: TEXT, "
    matched += "calibration.selection: {name: matched, to: set of noise, pool: 2}}\n"
    path = tmp_path / "pool.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    matched = matched.replace("TEXT", str(path))
    found, _ = run({**SMALL, "    noise: {calibration.source: random-tokens}\n": matched})
    assert found.failed == {}
    assert found.done == 6
    chosen = [read_manifest(folder) for folder in (tmp_path / "store" / "calibration").glob("*pool*")]
    assert len(chosen) == 2
    sets = {str(folder) for folder in (tmp_path / "store" / "calibration").glob("random*")}
    assert {manifest["spec"]["selection"]["to"] for manifest in chosen} == sets


def test_the_command_says_what_it_would_do_and_does_it(study_file, tmp_path, capsys):
    path, store = study_file(SMALL), tmp_path / "store"
    assert looks_like_study(path)
    assert main(["check", path, "--store", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "cells        4: 0 cached, 4 to run, 0 failed before; 4 calibration sets" in printed
    assert "GiB each" in printed
    assert "Nothing was run" in printed
    assert main(["study", path, "--store", str(store), "--workers", "0"]) == 0
    printed, errors = capsys.readouterr()
    assert "4 of 4 cells done" in printed
    assert "cells: 2 of 4, expected end" in errors
    assert main(["study", path, "--store", str(store), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cached"]) == 4
    assert found["to_run"] == found["failed"] == []
    assert found["expected"]["sentence"] == "nothing but what the store has already"
    assert main(["study", path, "--store", str(store), "--workers", "-1"]) == 2
    other = study_file({**SMALL, "samples: 6": "samples: 5"}, "other.yaml")
    assert main(["check", other, "--store", str(store)]) == 0
    assert re.search(r"making 4 calibration sets \(about \d+ s going by sets of the store\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration.source: random-tokens": "calibration.sorce: random-tokens"},
            r"study\.yaml, line 12: axis 'source' sets 'calibration\.sorce', .* did you mean 'calibration\.source'\?",
        ),
        ({"path: pruning.method": "path: method"}, r"axis 'method' sets 'method', .* did you mean 'pruning\.method'"),
        ({"path: pruning.method": "path: pruning.pattern.name"}, "pruning.pattern is a value, not a group"),
        ({"metrics: [kl]": "metric: perplexty"}, "line 16: There is no metric 'perplexty'; did you mean 'perplexity'"),
        ({"repeats: 3": "repeat: 3"}, r"^\S+study\.yaml, line 14: there is no key 'repeat'; did you mean 'repeats'\?$"),
        (
            {"metrics: [kl]": "metriks: [kl]"},
            r"study\.yaml, line 16: there is no key 'metriks'; did you mean 'metrics'",
        ),
        ({"repeats: 3": "repeats: 0"}, "repeats is a number of at least 1 or a list of different seeds; found "),
        ({"repeats: 3": "repeats: [1, 1]"}, "list of different seeds"),
        ({"path: pruning.method, values: [wanda, sparsegpt]": "path: seed, values: [0, 1]"}, "seeds are repeats"),
        ({"values: [wanda, sparsegpt]": "values: [wanda, wanda]"}, "the value wanda is there twice"),
        ({"values: [wanda, sparsegpt]": "values: [wanda, sparsgpt]"}, "did you mean 'sparsegpt'"),
        ({"calibration.source: random-tokens": "calibration.samples: six"}, r"calibration\.samples: .* found 'six'"),
        ({"samples: 6": "samples: six"}, r"\(recipe\), line 6: calibration\.samples: .*found 'six'"),
        (
            {"metrics: [kl]": "exclude: [{sorce: words}]"},
            "exclusion 1: there is no axis 'sorce'; did you mean 'source'",
        ),
        ({"metrics: [kl]": "exclude: [{source: word}]"}, "no label 'word'; did you mean 'words'"),
        ({"metrics: [kl]": "exclude: [{source: [words, noise]}]"}, "the exclusions leave none of the 4 cells"),
        ({"metrics: [kl]": "exclude: [{source: words}]"}, "leave no cell of 'words' on axis 'source'"),
        ({"metrics: [kl]": "exclude: [{}]"}, "would exclude every cell"),
        ({"limit: 4": "limit: 4, fidelity: false"}, "no cell produces the metric 'kl': evaluation.fidelity is off"),
        ({"limit: 4": "limit: 4, enabled: false"}, "a study evaluates every cell"),
        (
            {"path: pruning.method, values: [wanda, sparsegpt]": "path: pruning.activation_gib, values: [1.0, 2.0]"},
            "axis 'method' changes nothing: all of its labels .1.0, 2.0. are the same cell.* has no answer",
        ),
        (
            {"  method: {path": "  value: {path"},
            "the results have a column 'value' of their own; give the axis another",
        ),
        ({"kind: difference": "kind: diference"}, "no comparison named 'diference'; did you mean 'difference'"),
        ({"axis: source, against: method": "axis: source, against: methods"}, "comparison 2: .*no axis 'methods'"),
        (
            {"random-tokens}": "random-tokens, calibration.selection: {name: matched, to: set of wrds}}"},
            "no label of an axis",
        ),
        (
            {"- {kind: effects, axis: source, against: method}": "- {kind: correlation, axis: source, fact: jacard}"},
            "at least 5 labels",
        ),
        (
            {
                "- {kind: effects, axis: source, against: method}": "- {kind: effects, axis: source, against: method, metric: js}",
                "limit: 4": "limit: 4, fidelity: false",
                "metrics: [kl]": "metrics: []",
            },
            "no cell produces the metric 'js': evaluation.fidelity is off",
        ),
        (
            {
                "- {kind: effects, axis: source, against: method}": "- {kind: correlation, axis: source, fact: jaccard}",
                "  method: {path": MORE_SOURCES + "  method: {path",
            },
            "compares a set with a text; name that text as its reference",
        ),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_runs(study_file, changes, message):
    with pytest.raises(UsageError, match=message):
        plan_study(load_study(study_file(changes)))


def test_an_axis_may_be_called_what_a_cell_reached(run):
    method, along = "method: {path: pruning.method, values: [wanda, sparsegpt]}", "sparsity: {path: pruning.sparsity, "
    changes = {
        method: along + "values: [0.5, 0.6]}",
        "against: method": "against: sparsity",
        "repeats: 3": "repeats: 1",
    }
    found, _ = run(changes | {"controls: [dense, magnitude, random tokens]": "controls: []"})
    rows = [row for row in rows_of(found.folder) if row["metric"] == "perplexity"]
    assert len(rows) == 4
    assert {row["sparsity"] for row in rows} == {"0.5", "0.6"}
    assert all(row["sparsity_reached"] == pytest.approx(float(row["sparsity"]), 0.03) for row in rows)


def test_labels_that_make_no_difference_are_pointed_out(study_file):
    same = "values: [wanda, sparsegpt]}\n  idle: {path: pruning.activation_gib, values: [1.0, 2.0]}"
    plan = plan_study(load_study(study_file({"values: [wanda, sparsegpt]}": same})))
    assert len(plan.works) == 14
    (note,) = plan.notes
    assert "axis 'idle' changes nothing: all of its labels (1.0, 2.0) are the same cell" in note
    third = "    third: {calibration.source: random-tokens, calibration.pool: 8}\n  method:"
    plan = plan_study(load_study(study_file({"  method:": third})))
    assert len(plan.works) == 14
    assert "the labels 'noise' and 'third' of axis 'source' are the same cells; they run once" in plan.notes[0]


def test_exclusions_leave_out_what_they_name(study_file):
    study = load_study(study_file({"metrics: [kl]": "exclude: [{source: noise, method: [sparsegpt]}]"}))
    plan = plan_study(study)
    cells = {(cell.labels["source"], cell.labels["method"]) for cell, _ in plan.cells if not cell.control}
    assert cells == {("words", "wanda"), ("words", "sparsegpt"), ("noise", "wanda")}
