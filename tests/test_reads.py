"""What filters and selections read besides the samples decides the set, so it is part of its digest; and the matched control."""

from __future__ import annotations

import math

import pytest

from conftest import ScriptedContext
from secateur.calibration.sample import Sample, write_samples
from secateur.calibration.selection.matched import Matched
from secateur.errors import CalibrationError, ModelError, UsageError
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter


def planned(model, text, **calibration):
    settings = {"source": str(text), "samples": 4, "length": 16} | calibration
    return plan_calibration(load_recipe(None, [], {"model": str(model), "calibration": settings}))


@pytest.mark.parametrize(
    "setting",
    [
        lambda path: {"filters": [{"name": "contamination", "against": [path]}]},
        lambda path: {"selection": {"name": "influence", "targets": [path]}},
    ],
    ids=["contamination", "influence"],
)
def test_another_text_under_the_same_name_is_another_set(llama, text_file, tmp_path, setting):
    other = tmp_path / "other.txt"
    other.write_text("the quick brown fox jumps over the lazy dog and then sleeps for a very long time indeed")
    first = planned(llama, text_file, **setting(str(other)))
    assert planned(llama, text_file, **setting(str(other))).spec == first.spec
    other.write_text("something else altogether, of more words than eight, so that it counts as a text")
    assert planned(llama, text_file, **setting(str(other))).spec != first.spec


def test_what_is_not_there_is_told_before_anything_is_made(llama, text_file, tmp_path):
    missing = str(tmp_path / "missing.txt")
    with pytest.raises(CalibrationError, match=r"There is no file or folder .*missing\.txt"):
        planned(llama, text_file, selection={"name": "influence", "targets": [missing]})
    with pytest.raises(ModelError):
        planned(llama, text_file, filters=[{"name": "perplexity", "model": str(tmp_path)}])
    with pytest.raises(UsageError, match="is no finished calibration set"):
        planned(llama, text_file, selection={"name": "matched", "to": str(tmp_path)})
    with pytest.raises(UsageError, match="needs to be told which set"):
        planned(llama, text_file, selection="matched")


def test_matched_samples_are_as_likely_as_those_of_the_other_set(tmp_path):
    wanted = [2.0, 8.0, 8.0, 30.0]
    pool = [3.0, 7.5, 100.0, 2.1, 29.0, 8.4, 500.0, 60.0]
    of = [Sample((1, 2, number), mean_logprob=-math.log(value)) for number, value in enumerate(wanted)]
    write_samples(tmp_path / "samples.jsonl", of, [""] * len(of))
    samples = [Sample((5, 6, number), mean_logprob=-math.log(value)) for number, value in enumerate(pool)]
    choice = Matched(to=str(tmp_path)).choose(samples, 4, ScriptedContext())
    assert sorted(pool[index] for index in choice.indices) == [2.1, 7.5, 8.4, 29.0]
    assert choice.values == pytest.approx(pool)
    more = Matched(to=str(tmp_path)).choose(samples, 6, ScriptedContext())  # the set's own are taken again in turn
    assert len(set(more.indices)) == 6
    assert {3, 4} <= set(more.indices)


def test_a_set_is_matched_end_to_end(llama, text_file, tmp_path):
    target = planned(llama, text_file, samples=3, selection="lowest-perplexity")
    folder = target.run(tmp_path / "target", Reporter())
    stage = planned(llama, text_file, selection={"name": "matched", "to": str(folder), "pool": 3})
    made = stage.run(tmp_path / "made", Reporter())
    assert len((made / "samples.jsonl").read_text().splitlines()) == 4
    assert (made / "unchosen.jsonl").exists()
