"""The weight of prompt tokens: sums over tokens in which some count more, less, or not at all, wherever sums are taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from conftest import Watched, open_job, planned, save_model, sequences
from secateur import Recipe, prune
from secateur.allocation import ALLOCATIONS
from secateur.calibration.sample import Sample, read_samples
from secateur.errors import RecipeError, UsageError
from secateur.journal import Journal
from secateur.methods import METHODS
from secateur.models.batches import Batch, make_batches
from secateur.models.capture import capture
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.prune import check_prompts, check_request, plan_prune, refuse_unlike
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import digest_of, read_manifest
from secateur.pruning.collect import collect
from secateur.pruning.linear import FALLBACK
from secateur.pruning.loop import Setting, prune_blocks
from secateur.pruning.records import LinearRecord
from secateur.pruning.survey import survey
from secateur.pruning.workers import Workers
from secateur.statistics import ColumnNorms, Gram, InputStatistics, Moments, Statistic
from test_workers import finish, launch, printed

KINDS = [ColumnNorms, Gram, Moments]
PROMPTS = [6, 9, 0, 3, 17, 1]
"""Of each of ``sequences()``: the second and the fifth are prompts and nothing else, the third has none."""


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(6, 10, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(16) % 3


def summed(kind: type[Statistic], *updates: tuple[torch.Tensor, torch.Tensor | None]) -> Statistic:
    found = kind(updates[0][0].shape[-1])
    for inputs, mask in updates:
        found.update(inputs, mask)
    return found


def same(one: Statistic, other: Statistic) -> bool:
    return one.tokens == other.tokens and all(map(torch.equal, one.sums(), other.sums()))


def close(one: Statistic, other: Statistic) -> None:
    assert one.tokens == pytest.approx(other.tokens)
    if isinstance(one, Gram) and isinstance(other, Gram):
        assert (one.matrix - other.matrix).norm() <= 1e-4 * other.matrix.norm()
    else:
        assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(one.sums(), other.sums(), strict=True))


# The statistics.


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_and_none_are_a_mask_to_the_bit(kind, rows):
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    poisoned = rows.masked_fill(~mask[..., None], float("nan"))
    assert same(summed(kind, (poisoned, mask.double())), summed(kind, (rows, mask)))
    assert same(summed(kind, (rows, torch.ones(6, 10).double())), summed(kind, (rows, None)))
    assert isinstance(summed(kind, (rows, mask.double())).tokens, int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_two_is_the_token_twice(kind, dtype, rows):
    rows, weights = rows.to(dtype), torch.ones(6, 10).double()
    weights[:, :4] = 2
    weights[5] = 0
    found = summed(kind, (rows, weights))
    close(found, summed(kind, (rows[:5], None), (rows[:5, :4], None)))
    assert found.tokens == 70


@pytest.mark.parametrize("kind", KINDS)
def test_any_weight_is_a_weighted_sum(kind, rows):
    weights = torch.tensor([0.25, 3.0, 0.0, 0.7, 1.0, 1e-3]).double()[:, None].expand(6, 10)
    found = summed(kind, (rows, weights))
    x, w = rows.reshape(60, 16).double(), weights.reshape(60, 1)
    assert found.tokens == pytest.approx(w.sum().item())
    expected = {ColumnNorms: [(w * x**2).sum(0)], Gram: [(w * x).T @ x], Moments: [(w * x).sum(0), (w * x**2).sum(0)]}
    sums = [found.matrix] if isinstance(found, Gram) else found.sums()
    torch.testing.assert_close([one.double() for one in sums], expected[kind], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [1e-3, 0.5, 7.0])
def test_one_weight_for_all_changes_no_mean(rows, weight):
    plain, found = (InputStatistics(kind(16) for kind in KINDS) for _ in range(2))
    plain.update(rows)
    found.update(rows, torch.full((6, 10), weight).double())
    assert found.tokens == pytest.approx(60 * weight)
    for one, other in [
        (found[ColumnNorms].norms(), plain[ColumnNorms].norms()),
        (found[Gram].mean(), plain[Gram].mean()),
        (found[Moments].mean(), plain[Moments].mean()),
        (found[Moments].variance(), plain[Moments].variance()),
    ]:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# The batches.


def weighted_batches(weight: float, batch: int = 4) -> list[Batch]:
    return make_batches(sequences(), batch, PROMPTS, weight)


def test_batches_say_how_much_each_token_counts():
    for number, batch in enumerate(weighted_batches(0.5)):
        assert batch.counted is not None
        for row, ids in enumerate(sequences()[4 * number : 4 * number + 4]):
            prompt = PROMPTS[4 * number + row]
            expected = [0.5] * prompt + [1.0] * (len(ids) - prompt) + [0.0] * (batch.ids.shape[1] - len(ids))
            assert batch.counted[row].tolist() == expected
    plain, nothing = make_batches(sequences(), 4), weighted_batches(0)
    for one, other, without in zip(plain, weighted_batches(1), nothing, strict=True):
        assert other.weights is None
        assert other.counted is other.mask
        assert without.counted is not None
        assert without.counted.dtype == torch.bool
        assert all(torch.equal(one.model_inputs()[key], without.model_inputs()[key]) for key in one.model_inputs())


# The loop: a prompt alone has the activations that it has before its completion, since the model is causal.


def prompts_alone() -> list[list[int]]:
    return [ids[:prompt] for ids, prompt in zip(sequences(), PROMPTS, strict=True) if prompt]


def run(
    model: Path, out: Path, batches: Sequence[Batch], propagation: str = "block", method: str = "wanda", **options
) -> tuple[list[LinearRecord], dict[str, InputStatistics]]:
    skeleton, watched = Skeleton(model), Watched(METHODS.load(method)())
    job = open_job(skeleton, planned(skeleton, watched, **options), out)
    prune_blocks(skeleton, [job], batches, Setting(propagation))
    return job.journal.records(), watched.seen


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
@pytest.mark.parametrize("method", ["sparsegpt", "dsnot"])
def test_prompts_that_count_twice_are_prompts_fed_twice(llama, tmp_path, method, propagation):
    twice, found = run(llama, tmp_path / "a", weighted_batches(2), propagation, method, head=True)
    fed, expected = run(
        llama, tmp_path / "b", make_batches(sequences() + prompts_alone(), 4), propagation, method, head=True
    )
    total = sum(map(len, sequences())) + sum(PROMPTS)
    assert {record.tokens for record in twice} == {record.tokens for record in fed} == {total}
    assert found.keys() == expected.keys()
    for name, stats in found.items():
        for one, other in zip(stats, expected[name], strict=True):
            close(one, other)


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_what_does_not_count_is_what_all_have_less_what_prompts_have(llama, tmp_path, propagation):
    """In the first linears all see the same; in the dense model every linear does."""
    folders = iter(tmp_path / name for name in "abc")
    batches = [weighted_batches(0), make_batches(sequences(), 4), make_batches(prompts_alone(), 4)]
    (records, none), (_, full), (_, alone) = (
        run(llama, next(folders), one, propagation, "sparsegpt") for one in batches
    )
    assert {record.tokens for record in records} == {sum(map(len, sequences())) - sum(PROMPTS)}
    assert all(isinstance(record.tokens, int) for record in records)
    names = [name for name in none if propagation == "dense" or name.endswith("layers.0.self_attn.q_proj")]
    assert len(names) == (14 if propagation == "dense" else 1)
    for name in names:
        parts = none[name][Gram].matrix + alone[name][Gram].matrix
        torch.testing.assert_close(parts, full[name][Gram].matrix, rtol=1e-4, atol=1e-4)


def test_what_does_not_count_may_be_anything(llama, tmp_path):
    """Other tokens in the prompts change the completion's inputs through attention only: not those of the first linears."""
    other = [[5] * prompt + ids[prompt:] for ids, prompt in zip(sequences(), PROMPTS, strict=True)]
    name = "model.layers.0.self_attn.q_proj"
    found = [
        run(llama, tmp_path / str(number), make_batches(data, 4, PROMPTS, weight), "dense")[1][name][ColumnNorms]
        for number, (data, weight) in enumerate([(sequences(), 0), (other, 0), (sequences(), 1), (other, 1)])
    ]
    torch.testing.assert_close(found[0].squares, found[1].squares)
    assert not torch.allclose(found[2].squares, found[3].squares)


MIXTURE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2, "num_local_experts": 6,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    return save_model(transformers.MixtralConfig(**MIXTURE), tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_experts_count_the_tokens_sent_to_them_by_their_weight(mixture, tmp_path, propagation):
    data = sequences() + prompts_alone()
    weighted, found = run(mixture, tmp_path / "a", weighted_batches(2), propagation, "sparsegpt", min_tokens=0)
    fed, expected = run(mixture, tmp_path / "b", make_batches(data, 4), propagation, "sparsegpt", min_tokens=0)
    assert [record.tokens for record in weighted] == [record.tokens for record in fed]
    assert len({record.tokens for record in weighted}) > 4
    for name, stats in found.items():
        if ".0." in name:
            close(stats[Gram], expected[name][Gram])


def test_an_expert_is_starved_by_prompts_that_hardly_count(mixture, tmp_path):
    plain, _ = run(mixture, tmp_path / "a", make_batches(sequences(), 4), "dense", min_tokens=0)
    least = int(min(record.tokens for record in plain if ".experts." in record.name))
    weighted, _ = run(mixture, tmp_path / "b", weighted_batches(0.01), "dense", min_tokens=least)
    starved = [record for record in weighted if FALLBACK in record.notes]
    assert starved
    assert all(record.tokens < least for record in starved)
    assert any(isinstance(record.tokens, float) for record in weighted)


@pytest.mark.parametrize("name", ["owl", "error"])
def test_allocations_measure_with_the_weights(llama, tmp_path, name):
    skeleton = Skeleton(llama)
    found = []
    for number, batches in enumerate(
        [weighted_batches(2), make_batches(sequences() + prompts_alone(), 4), make_batches(sequences(), 4)]
    ):
        plan = planned(skeleton, "wanda", "unstructured", 0.6, ALLOCATIONS.load(name)())
        journal = Journal(tmp_path / str(number))
        measured = survey(skeleton, plan, batches, journal, HiddenStates(), Workers())
        found.append(torch.tensor([value for block in measured for value in numbers(block)], dtype=torch.float64))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[2], rtol=1e-3, atol=1e-3)


def numbers(measured) -> list[float]:
    """All numbers of what an allocation measured, however it is laid out."""
    if isinstance(measured, dict):
        return [number for key in sorted(measured) for number in numbers(measured[key])]
    return [number for part in measured for number in numbers(part)] if isinstance(measured, list) else [measured]


# Several processes.


def of_first_block(model: Path, batches: Sequence[Batch]) -> dict[str, InputStatistics]:
    skeleton = Skeleton(model)
    activations = capture(skeleton, batches)
    return collect(0, skeleton.load_block(0), skeleton.linears(0), activations, KINDS, advance=False)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_what_processes_see_of_their_batches_adds_up(llama, weight):
    batches = weighted_batches(weight, 1)
    whole = of_first_block(llama, batches)
    one, other = (of_first_block(llama, Workers(rank, 2).portion(batches)) for rank in (0, 1))
    for name, stats in whole.items():
        assert one[name].tokens + other[name].tokens == pytest.approx(stats.tokens)
        for kind in KINDS:
            for mine, theirs, both in zip(*(part[name][kind].sums() for part in (one, other, whole)), strict=True):
                assert (mine + theirs - both).norm() <= 1e-5 * both.norm()


SCRIPT = """
import torch
from secateur.pruning.workers import Workers
from secateur.statistics import ColumnNorms, InputStatistics

workers = Workers.start("cpu")
for weight, tokens in ((0.3, 5.2), (0.5, 6), (0.0, 4)):
    stats = InputStatistics([ColumnNorms(3)])  # one process counts whole tokens, the other parts of them, or none
    stats.update(torch.ones(4, 3), torch.full((4,), weight, dtype=torch.float64) if workers.rank else None)
    workers.reduce([stats])
    assert abs(stats.tokens - tokens) < 1e-9, stats.tokens
    assert type(stats.tokens) is type(tokens) or weight == 0.3
    assert torch.allclose(stats[ColumnNorms].norms(), torch.ones(3))
Workers.stop()
"""


def test_two_processes_agree_on_weighted_tokens(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    code = finish(launch([tmp_path / "script.py"], tmp_path / "logs"))
    assert code == 0, [printed(tmp_path / "logs", rank) for rank in (0, 1)]


# Through the pipeline.

OWN = {
    "device": "cpu",
    "calibration.packing": "whole",
    "calibration.samples": 6,
    "calibration.length": 24,
    "calibration.generation.prefix_tokens": 4,
    "evaluation.enabled": False,
}


def recipe(model: Path, text_file: Path, **more: object) -> Recipe:
    return load_recipe(None, (), OWN | {"model": str(model), "calibration.generation.prefixes": str(text_file)} | more)


@pytest.fixture(scope="module")
def own_set(llama, text_file, tmp_path_factory) -> Path:
    return plan_calibration(recipe(llama, text_file)).run(tmp_path_factory.mktemp("sets") / "set", Reporter())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_recipe_says_what_prompts_count(llama, own_set, tmp_path, text_file, weight):
    samples = read_samples(own_set / "samples.jsonl")
    prompts, total = sum(s.prompt_tokens for s in samples), sum(len(s.token_ids) for s in samples)
    assert prompts == 5 * 6
    more = {"calibration.source": str(own_set), "pruning.batch_size": 2}
    result = prune(recipe(llama, text_file, **more, **{"pruning.prompt_weight": weight}), store=tmp_path)
    plain = prune(recipe(llama, text_file, **more), store=tmp_path)
    assert result.folder != plain.folder
    for made, expected in ((result, total - prompts * (1 - weight)), (plain, total)):
        lines = (made.folder / "pruning.jsonl").read_text().splitlines()
        assert {linear["tokens"] for line in lines for linear in json.loads(line)["linears"]} == {expected}
    manifest, other = read_manifest(result.folder), read_manifest(plain.folder)
    assert manifest is not None
    assert other is not None
    assert manifest["spec"].pop("prompt_weight") == weight
    assert manifest["spec"] == other["spec"]  # a weight of one is not mentioned: what was made before has its digest
    files = [name for name in manifest["files"] if name.endswith(".safetensors")]
    assert any(manifest["files"][name] != other["files"][name] for name in files)


def test_every_weight_is_another_output(llama, text_file, own_set):
    model = resolve_model(str(llama))
    digests = {
        digest_of(plan_prune(recipe(llama, text_file, **{"pruning.prompt_weight": weight}), model).spec(own_set))
        for weight in (0.0, 0.5, 1.0, 2.0)
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"calibration.packing": "concat"}, "found source 'self' and packing 'concat'. Set"),
        ({"calibration.source": "random-tokens"}, "found source 'random-tokens' and packing 'whole'. Set"),
    ],
)
def test_a_weight_without_prompts_to_come_is_refused(llama, text_file, more, words):
    check_request(recipe(llama, text_file, **more))
    check_request(recipe(llama, text_file, **{"pruning.prompt_weight": 0.5}))
    with pytest.raises(
        UsageError, match=rf"pruning.prompt_weight is 0.5, but only samples that the model writes .* {words}"
    ):
        check_request(recipe(llama, text_file, **more, **{"pruning.prompt_weight": 0.5}))


def test_sets_whose_prompts_cannot_be_weighed_are_refused(llama, text_file, tmp_path):
    drawn = recipe(llama, text_file, **{"calibration.source": str(text_file)})
    made = plan_calibration(drawn).run(tmp_path / "set", Reporter())
    given = {"calibration.source": str(made)}
    check_request(recipe(llama, text_file, **given))
    with pytest.raises(UsageError, match=r"is 2, but none of the 6 samples of .*set has a prompt"):
        check_request(recipe(llama, text_file, **given, **{"pruning.prompt_weight": 2.0}))
    only = [Sample((0, 5, 6), prompt_tokens=3)] * 2
    check_prompts(only, made, 0.1)
    with pytest.raises(UsageError, match=r"is 0, but the 2 samples of .*set are prompts and nothing else"):
        check_prompts(only, made, 0)


@pytest.mark.parametrize("weight", [-0.5, float("inf"), float("nan")])
def test_weights_that_make_no_sense(weight):
    with pytest.raises(ValueError, match="prompt_weight"):
        Recipe.model_validate({"pruning": {"prompt_weight": weight}})


def test_prunings_in_one_pass_have_one_weight(llama, text_file):
    recipes = [
        recipe(llama, text_file, **{"pruning.prompt_weight": w, "pruning.propagation": "dense"}) for w in (0.5, 0.0)
    ]
    refuse_unlike(recipes[:1] * 2)
    with pytest.raises(RecipeError, match=r"must have the same pruning\.prompt_weight"):
        refuse_unlike(recipes)
