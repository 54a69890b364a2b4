"""Channel permutation of a model: it computes the same, N:M stays exact, and what cannot be reordered is left alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from conftest import CONFIGS, save_model
from secateur.allocation.uniform import Uniform
from secateur.errors import UsageError, VerificationError
from secateur.journal import Journal
from secateur.masks import keep_mask, parse_pattern
from secateur.methods import METHODS
from secateur.methods.base import Pruned, ScoreMethod
from secateur.methods.wanda import Wanda
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.models.structure import find_linears
from secateur.pipeline.prune import check_request
from secateur.pipeline.recipe import PruningSpec, Recipe
from secateur.pruning.collect import collect
from secateur.pruning.loop import Job, Setting, prune_blocks
from secateur.pruning.permute import find_free
from secateur.pruning.plan import plan_pruning
from secateur.pruning.records import BlockJournal
from secateur.pruning.verify import verify
from secateur.pruning.workers import Workers
from secateur.statistics import ColumnNorms

PAIRS = parse_pattern("2:4")


@dataclass(frozen=True)
class KeepAll(ScoreMethod):
    """Prunes nothing, so that what is left of the change is the order."""

    needs = (ColumnNorms,)

    def score(self, weight, stats):
        return weight.abs() * stats[ColumnNorms].norms()

    def prune(self, weight, stats, pattern, sparsity):
        return Pruned(torch.ones_like(weight, dtype=torch.bool), weight)


MIXTURE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
BITNET = {key: value for key, value in MIXTURE.items() if "local" not in key and "per_tok" not in key}
ALL = CONFIGS | {
    "mixtral": lambda: transformers.MixtralConfig(**MIXTURE),
    "bitnet": lambda: transformers.BitNetConfig(**BITNET),
    "attention of one width": lambda: transformers.LlamaConfig(**(BITNET | {"intermediate_size": 32})),
}
REORDERED = {
    "gpt_neox": ["mlp.dense_4h_to_h"],
    "opt": ["fc2"],
    "gpt2": ["mlp.c_proj"],
    "mixtral": [f"mlp.experts.{expert}.down_proj" for expert in range(3)],
    "bitnet": [],  # a norm with a weight for each channel stands before its down_proj
}


@pytest.fixture(scope="module", params=list(ALL))
def trained(request, tmp_path_factory):
    """The name and folder of a model whose biases and norms are not all alike, as those of a new one are."""
    return request.param, lively(ALL[request.param](), tmp_path_factory.mktemp("model"))


def lively(config, folder: Path) -> Path:
    checkpoint = Checkpoint(save_model(config, folder))
    generator = torch.Generator().manual_seed(1)
    for name in checkpoint.names:
        tensor = checkpoint.read(name)
        if tensor.ndim == 1 and tensor.is_floating_point():
            checkpoint.patch({name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)})
    return folder


def tokens() -> list[list[int]]:
    return torch.randint(3, 300, (5, 20), generator=torch.Generator().manual_seed(0)).tolist()


def prune(model: Path, out: Path, method, permute=True, propagation="block", stop_after=None, pattern=PAIRS, **options):
    skeleton = Skeleton(model)
    method = METHODS.load(method)() if isinstance(method, str) else method
    plan = plan_pruning(skeleton, method, pattern, 0.5, Uniform(), permute=permute, **options)
    begun = (out / "journal").exists()
    output = skeleton.stored.of_copy(out) if begun else skeleton.stored.copy_to(out)
    job = Job(plan, output, BlockJournal(Journal(out / "journal")))

    def progress(done, total):
        if done == stop_after:
            raise KeyboardInterrupt

    prune_blocks(skeleton, [job], make_batches(tokens(), 2), Setting(propagation), progress)
    return job.journal.records()


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder)(torch.tensor(tokens())).logits


@pytest.mark.parametrize("propagation", ["block", "dense"])
def test_a_reordered_model_computes_what_it_did(trained, tmp_path, propagation):
    name, model = trained
    records = prune(model, tmp_path, KeepAll(), propagation=propagation)
    expected = REORDERED.get(name, ["mlp.down_proj"])
    for block in (0, 1):
        found = [record.name.split(f".{block}.", 1)[1] for record in records if record.order and record.block == block]
        assert found == expected
    torch.testing.assert_close(logits(tmp_path), logits(model), rtol=2e-4, atol=2e-4)
    before, after = Checkpoint(model), Checkpoint(tmp_path)
    changed = {key for key in before.names if not torch.equal(before.read(key), after.read(key))}
    if name == "mixtral":  # of each reordered expert, all three
        assert len(changed) == 3 * sum(bool(record.order) for record in records)
    else:
        assert changed == {key for record in records if record.order for key in (record.key, *record.moved)}
    if name in ("opt", "gpt2", "gpt_neox"):
        assert any("bias" in key for key in changed)


def test_n_m_is_exact_and_every_record_right_after_reload(trained, tmp_path):
    _, model = trained
    for method in ("wanda", "sparsegpt"):
        records = prune(model, tmp_path / method, method)
        found = verify(Skeleton(model), tmp_path / method, records, PAIRS, {record.name: 0.5 for record in records})
        assert found.sparsity == pytest.approx(0.5, abs=0.01)
        assert logits(tmp_path / method).isfinite().all()


@pytest.mark.parametrize("method", list(METHODS.entries()))
def test_every_method_goes_on_with_the_rows_it_pruned(llama, tmp_path, method):
    records = prune(llama, tmp_path / "with", method, propagation="dense")
    prune(llama, tmp_path / "without", method, permute=False, propagation="dense")
    reordered = [record for record in records if record.order]
    assert [record.name.rpartition(".")[2] for record in reordered] == ["down_proj"] * 2
    one, other = Checkpoint(tmp_path / "with"), Checkpoint(tmp_path / "without")
    for record in reordered:
        order = torch.tensor(record.order)
        assert len(record.moved) == 2
        for key, dim in record.moved.items():
            assert torch.equal(one.read(key), other.read(key).index_select(dim, order)), key
        verify(Skeleton(llama), tmp_path / "with", records, PAIRS, {record.name: 0.5 for record in records})


def test_more_of_the_scores_is_kept(llama, tmp_path):
    dense = Checkpoint(llama)
    kept = {}
    for permute in (True, False):
        out = tmp_path / str(permute)
        # Of magnitude, the scores are the weights: their sum is what is left of them.
        for record in prune(llama, out, "magnitude", permute=permute):
            if "down_proj" in record.name:
                kept[permute] = kept.get(permute, 0) + float(Checkpoint(out).read(record.key).abs().sum())
    whole = sum(float(dense.read(key).abs().sum()) for key in dense.names if "down_proj" in key)
    assert kept[False] + 0.01 * whole < kept[True] < whole


def test_a_producer_that_stays_dense_is_reordered_and_a_dense_consumer_is_not(llama, tmp_path):
    records = prune(llama, tmp_path / "a", "wanda", skip=["*.gate_proj"])
    assert all(len(record.moved) == 2 for record in records if record.order)
    verify(Skeleton(llama), tmp_path / "a", records, PAIRS, {record.name: 0.5 for record in records})
    key = "model.layers.0.mlp.gate_proj.weight"
    assert not torch.equal(Checkpoint(tmp_path / "a").read(key), Checkpoint(llama).read(key))
    records = prune(llama, tmp_path / "b", "wanda", skip=["*.down_proj"])
    assert not any(record.order or record.moved for record in records)
    verify(Skeleton(llama), tmp_path / "b", records, PAIRS, {record.name: 0.5 for record in records})


@pytest.mark.parametrize("propagation", ["block", "dense"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, propagation):
    model = lively(CONFIGS["opt"](), tmp_path / "model")
    prune(model, tmp_path / "whole", "wanda", propagation=propagation)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "resumed", "wanda", propagation=propagation, stop_after=1)
    # The second block was half done: some of its tensors are patched, the journal does not know.
    half = Checkpoint(tmp_path / "resumed")
    key = next(key for key in half.names if key.endswith("layers.1.fc1.bias"))
    half.patch({key: half.read(key).flip(0)})
    prune(model, tmp_path / "resumed", "wanda", propagation=propagation)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == other
    entries = [json.loads(line) for line in (tmp_path / "resumed" / "journal").read_text().splitlines()]
    assert len(entries) == 2


@pytest.mark.parametrize("part", ["bias", "weight"])
def test_verification_notices_a_tensor_that_was_not_moved(tmp_path, part):
    model = lively(CONFIGS["opt"](), tmp_path / "model")
    records = prune(model, tmp_path / "out", "wanda", skip=["*.fc1"])
    asked = {record.name: 0.5 for record in records}
    verify(Skeleton(model), tmp_path / "out", records, PAIRS, asked)
    key = next(key for record in records for key in record.moved if key.endswith(part))
    Checkpoint(tmp_path / "out").patch({key: Checkpoint(model).read(key)})
    with pytest.raises(VerificationError, match="rows reordered, but is not"):
        verify(Skeleton(model), tmp_path / "out", records, PAIRS, asked)


def test_the_mask_is_that_of_the_reordered_scores(llama, tmp_path):
    records = [record for record in prune(llama, tmp_path, "wanda", propagation="dense") if record.order]
    skeleton = Skeleton(llama)
    activations = capture(skeleton, make_batches(tokens(), 2))
    for record in records:
        block, linears = skeleton.load_block(record.block), skeleton.linears(record.block)
        stats = collect(record.block, block, linears, activations, [ColumnNorms], advance=True)[record.name]
        scores = Wanda().score(Checkpoint(llama).read(record.key), stats)[:, record.order]
        assert torch.equal(Checkpoint(tmp_path).read(record.key) != 0, keep_mask(scores, PAIRS, 0.5))


def test_one_pass_reorders_for_each_of_several_prunings(llama, tmp_path):
    skeleton, jobs = Skeleton(llama), []
    for name, text, permute in (("magnitude", "2:4", True), ("wanda", "4:8", True), ("wanda", "2:4", False)):
        pattern = parse_pattern(text)
        plan = plan_pruning(skeleton, METHODS.load(name)(), pattern, 0.5, Uniform(), permute=permute)
        out = tmp_path / f"{name}-{len(jobs)}"
        jobs.append(Job(plan, skeleton.stored.copy_to(out), BlockJournal(Journal(out / "journal"))))
    prune_blocks(skeleton, jobs, make_batches(tokens(), 2), Setting("dense"))
    orders = [[record.order for record in job.journal.records() if record.order] for job in jobs]
    assert [len(order) for order in orders] == [2, 2, 0]
    assert orders[0] != orders[1]
    for job in jobs:
        records = job.journal.records()
        verify(Skeleton(llama), job.output.checkpoint.folder, records, job.plan.pattern, job.plan.sparsities)
    alone = prune(llama, tmp_path / "alone", "magnitude", propagation="dense")
    assert [record.order for record in alone if record.order] == orders[0]


class Block(torch.nn.Module):
    """An MLP whose hidden channels ``between`` turns into what ``down`` is called with, and ``beside`` adds."""

    def __init__(self, between, beside=None) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
        self.between, self.beside = between, beside

    def forward(self, hidden):
        wide = self.up(hidden)
        output = hidden + self.down(self.between(wide))
        return output if self.beside is None else output + self.beside(wide)


SCALE = torch.linspace(0.5, 2, 32)


@pytest.mark.parametrize(
    ("free", "between", "beside"),
    [
        (True, torch.nn.functional.gelu, None),
        (True, lambda wide: wide * wide.softmax(dim=-1), None),
        (True, torch.nn.functional.gelu, lambda wide: wide.sum(dim=-1, keepdim=True) * 0),
        (False, lambda wide: wide * SCALE, None),
        (False, lambda wide: torch.cat([wide[..., :30], wide[..., 30:].flip(-1)], dim=-1), None),
        (False, lambda wide: wide.cumsum(dim=-1), None),
        (False, torch.nn.functional.gelu, lambda wide: 0.01 * wide[..., :8]),
    ],
)
def test_only_what_provably_keeps_the_block_the_same_is_reordered(free, between, beside):
    torch.manual_seed(0)
    block, hidden = Block(between, beside), torch.randn(2, 5, 8)
    activations = SimpleNamespace(forward=lambda index, block, batch: block(hidden))
    found = find_free(0, block, find_linears(block, "blocks.0", 0), activations, Workers())
    assert [(one.consumer.name, [one.name for one in one.producers]) for one in found] == (
        [("blocks.0.down", ["blocks.0.up"])] if free else []
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"pattern": "unstructured"}, "the pattern unstructured their order makes no difference"),
        ({"pattern": "2:4", "propagation": "linear"}, "Set it to block or dense"),
    ],
)
def test_permute_is_refused_where_it_cannot_be(llama, tmp_path, spec, words):
    with pytest.raises(UsageError, match=words):
        check_request(Recipe(pruning=PruningSpec(permute=True, **spec)))
    with pytest.raises(UsageError, match=words):
        prune(
            llama,
            tmp_path,
            "wanda",
            propagation=spec.get("propagation", "block"),
            pattern=parse_pattern(spec["pattern"]),
        )
