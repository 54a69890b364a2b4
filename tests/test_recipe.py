"""Recipes: strict types, YAML 1.2, errors with file, line and key; every setting reaches what it decides."""

from __future__ import annotations

import pytest

from secateur.errors import RecipeError, UnknownNameError
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import make_method, resolve_model
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.recipes import recipe_names
from secateur.pipeline.store import digest_of


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "r.yaml").write_text(text)
        return str(tmp_path / "r.yaml")

    return write


@pytest.mark.parametrize(
    "text", ["pruning:\n  pattern: 2:4", "pruning: {pattern: '2:4'}", 'pruning:\n  pattern: "2:4"']
)
def test_2_4_is_read_as_it_is_written_quoted_or_not(written, text):
    assert load_recipe(written(text)).pruning.pattern == "2:4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%YAML 1.1\n---\npruning:\n  pattern: 2:4", "line 4: pruning.pattern: .* the number 124: write it in quotes"),
        ("prunning: {}", "line 1: there is no key 'prunning'; did you mean 'pruning'"),
        ("pruning:\n  sparsty: 0.5", "line 2: there is no key 'pruning.sparsty'; did you mean 'sparsity'"),
        ("calibration:\n  generation:\n    zzz: 1", "line 3: there is no key .*; known here: style, engine, prefixes"),
        ("calibration:\n  samples: '12'", "line 2: calibration.samples: .* found '12'"),
        ("calibration:\n  samples: 0", "greater than or equal to 1"),
        ("calibration:\n  samples: yes", "found 'yes'"),
        ("calibration:\n  packing: both", "'concat', 'document', 'whole', 'paper', "),
        ("pruning:\n  pattern: 4:2", "did you mean '2:4'"),
        ("pruning: [", "is not valid YAML"),
        ("pruning:\n  pattern: a\n  pattern: b", "is not valid YAML"),
        ("- a", "not a mapping"),
    ],
)
def test_recipes_that_cannot_be_used(written, text, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(text))


def test_errors_name_what_was_found_briefly(written):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written("model: {a: b}\ncalibration:\n  mixture: [{sorce: self}]\npruning:\n  sparsty: 0.5"))
    said = str(caught.value)
    assert "line 5: there is no key 'pruning.sparsty'; did you mean 'sparsity'? " in said
    assert said.index("no key") < said.index(
        "line 1: model: Input should be a valid string, found a group of settings."
    )
    assert "{" not in said
    assert "Field required" not in said
    assert "?." not in said
    with pytest.raises(RecipeError, match=r"the key 'calibration\.mixture\.0\.source' is missing"):
        load_recipe(written("calibration: {mixture: [{weight: 1.0}]}"))


def test_recipes_that_are_not_there(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(UnknownNameError, match="did you mean 'paper'"):
        load_recipe("papr")
    assert load_recipe(None) == Recipe()


def test_every_bundled_recipe_is_valid():
    assert {"paper", "quick", "semi-structured"} <= set(recipe_names())
    for name, summary in recipe_names().items():
        load_recipe(name)
        assert summary.endswith(".")


def test_set_and_flags_are_laid_over_the_file(written):
    path = written("seed: 3\npruning: {method: wanda, sparsity: 0.4}")
    flags = {"pruning.method": "sparsegpt", "pruning.sparsity": None}
    recipe = load_recipe(path, ["pruning.method.damping=0.1", "calibration.filters=[]"], flags)
    assert recipe.pruning.method == Named.model_validate({"name": "sparsegpt", "damping": 0.1})
    assert (recipe.seed, recipe.pruning.sparsity, recipe.calibration.filters) == (3, 0.4, [])
    for bad, words in {
        "pruning.sparsity": "not of the form",
        "=3": "not of the form",
        "seed.x=3": "is the value 3",
        "pruning.nope=1": "no key",
    }.items():
        with pytest.raises(RecipeError, match=words):
            load_recipe(path, [bad])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "wandaa"}, "did you mean 'wanda'"),
        ({"name": "sparsegpt", "dampng": 0.1}, "no setting 'dampng'; did you mean 'damping'"),
        ({"name": "sparsegpt", "damping": "much"}, "damping: .* found 'much'"),
        ({"name": "sparsegpt", "damping": 5.0}, "found block 128 and damping 5.0"),
    ],
)
def test_components_that_cannot_be_made(settings, words):
    with pytest.raises(Exception, match=words):
        make_method(Named.model_validate(settings))


CALIBRATION_CHANGES = {
    "seed": 1,
    "dtype": "bfloat16",
    "calibration.samples": 9,
    "calibration.length": 20,
    "calibration.packing": "document",
    "calibration.bos": "none",
    "calibration.filters": [],
    "calibration.source": "random-tokens",
    "calibration.generation.prefixes": "site-packages",
    "calibration.generation.prefix_tokens": 3,
    "calibration.generation.prefix_unit": "document",
    "calibration.generation.temperature": 1.0,
    "calibration.generation.top_k": 10,
    "calibration.generation.top_p": 0.5,
    "calibration.generation.repetition_penalty": 1.0,
    "calibration.generation.batch_size": 7,
    "calibration.generation.generations": 100,
}


def test_every_setting_of_the_data_changes_its_digest(llama):
    model = resolve_model(str(llama))
    plans = [plan_calibration(load_recipe(None, (), {key: value}), model) for key, value in CALIBRATION_CHANGES.items()]
    digests = {digest_of(plan.spec) for plan in [plan_calibration(Recipe(), model), *plans]}
    assert len(digests) == len(CALIBRATION_CHANGES) + 1


@pytest.mark.parametrize(("key", "value"), [("pool", 3), ("split", "x"), ("revision", "y")])
def test_settings_of_drawn_data_change_its_digest_too(llama, text_file, key, value):
    model, source = resolve_model(str(llama)), {"calibration.source": str(text_file)}
    plain, other = (
        plan_calibration(load_recipe(None, (), source | extra), model) for extra in ({}, {f"calibration.{key}": value})
    )
    assert digest_of(plain.spec) != digest_of(other.spec)


def test_every_setting_of_the_pruning_changes_its_digest(llama):
    model = resolve_model(str(llama))
    changes = {
        "dtype": "bfloat16",
        "pruning.method": "magnitude",
        "pruning.method.damping": 0.1,
        "pruning.pattern": "2:4",
        "pruning.sparsity": 0.4,
        "pruning.skip": ["*.k_proj"],
        "pruning.head": True,
        "pruning.batch_size": 3,
    }
    base = {"pruning.method": "sparsegpt"}
    plans = [plan_prune(load_recipe(None, (), base | {key: value}), model) for key, value in changes.items()]
    digests = {digest_of(plan.spec(None)) for plan in [plan_prune(load_recipe(None, (), base), model), *plans]}
    assert len(digests) == len(changes) + 1


def test_the_same_text_in_a_file_of_another_name_is_other_data_only_if_its_content_is(llama, text_file, tmp_path):
    model = resolve_model(str(llama))

    def digest(path) -> str:
        return digest_of(plan_calibration(load_recipe(None, (), {"calibration.source": str(path)}), model).spec)

    changed = tmp_path / "text.jsonl"
    changed.write_text(text_file.read_text())
    before = digest(changed)
    assert before == digest(changed)
    changed.write_text(text_file.read_text().replace("fox", "cat"))
    assert digest(changed) != before


def test_where_an_engine_runs_does_not_make_another_set():
    def spec(*engine):
        settings = ["calibration.samples=4", "calibration.length=64", *engine]
        return plan_calibration(load_recipe(None, settings, {"model": "reference"})).spec

    engine = "calibration.generation.engine="
    plain = spec()
    assert spec(engine + "{name: ray}") == plain
    assert spec(engine + "{name: ray, workers: 2, address: auto, engine: transformers}") == plain
    assert spec(engine + "{name: ray, engine: {name: vllm}}") != plain
    assert spec(engine + "{name: ray, gpus: 1}") != plain, "a GPU rounds otherwise"
