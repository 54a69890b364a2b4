"""Model folders as people have them: layouts that transformers loads or does not, and quantised weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from changed_folders import (
    DENSE,
    FEW,
    SHARDS,
    USUAL,
    Change,
    assert_matches,
    both,
    config,
    decoy,
    gone,
    in_index,
    linked,
    moved,
    put,
    sharded,
    tensors,
    wrote,
)
from secateur.cli.main import main
from secateur.models.checkpoint import Checkpoint
from secateur.models.layout import INDEX, WEIGHTS
from secateur.models.loading import check_loadable, load_model
from secateur.pipeline.components import resolve_model
from secateur.pipeline.store import read_manifest

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def run(tmp_path, capsys):
    """Run a command with a store of its own; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def folder(llama, tmp_path):
    """A copy of the model to change."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture(scope="module")
def pruned(llama, tmp_path_factory):
    """The model as it is, pruned by magnitude: its tensors."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    flags = ["--method", "magnitude", "--pattern", "2:4", *DENSE, "-q", "--store", str(out.parent / "store")]
    assert main(["prune", str(llama), *flags, "--out", str(out)]) == 0
    return transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()


# Layouts that transformers loads

LOADED: dict[str, tuple[Change, list[str], list[str]]] = {
    "shards": (sharded(), [*SHARDS, INDEX], []),
    "one file and shards": (sharded(decoy=True), [WEIGHTS], [*SHARDS, INDEX]),
    "shards in a sub-folder": (
        sharded("parts/{}.safetensors".replace("{}", "{:05d}")),
        [INDEX, "parts/00001.safetensors", "parts/00002.safetensors"],
        ["parts/"],
    ),
    "named in config.json": (
        both(moved(WEIGHTS, "own.safetensors"), config(transformers_weights="own.safetensors")),
        ["own.safetensors"],
        [],
    ),
    "named, beside the usual name": (
        both(
            moved(WEIGHTS, "own.safetensors"),
            config(transformers_weights="own.safetensors"),
            lambda folder: put(folder, {"model.norm.weight": torch.zeros(32)}),
        ),
        ["own.safetensors"],
        [WEIGHTS],
    ),
    "named in a sub-folder": (
        both(moved(WEIGHTS, "w/own.safetensors"), config(transformers_weights="w/own.safetensors")),
        ["w/own.safetensors"],
        ["w/"],
    ),
    "a named index": (
        both(sharded(index="own.safetensors.index.json"), config(transformers_weights="own.safetensors.index.json")),
        [*SHARDS, "own.safetensors.index.json"],
        [],
    ),
    "a variant beside": (
        both(
            decoy("model.fp16.safetensors"),
            sharded("model.bf16-{:05d}-of-00002.safetensors", "model.safetensors.index.bf16.json", decoy=True),
        ),
        [WEIGHTS],
        [
            "model.bf16-00001-of-00002.safetensors",
            "model.bf16-00002-of-00002.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.bf16.json",
        ],
    ),
    "consolidated and others beside": (
        both(
            decoy("consolidated.safetensors"),
            wrote("params.json", "{}"),
            wrote("original/consolidated.00.pth"),
            wrote("pytorch_model.bin"),
            wrote("pytorch_model.bin.index.json", "{}"),
        ),
        [WEIGHTS],
        [
            "consolidated.safetensors",
            "original/",
            "params.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ],
    ),
    "a link": (both(moved(WEIGHTS, "blobs/1"), linked(WEIGHTS, "blobs/1")), [WEIGHTS], ["blobs/"]),
    "a link to nowhere, and shards": (
        both(sharded(), linked(WEIGHTS, "nowhere"), linked("LICENSE", "nowhere")),
        [*SHARDS, INDEX],
        ["LICENSE", WEIGHTS],
    ),
    "templates and a licence": (
        both(wrote("additional_chat_templates/tool_use.jinja"), wrote("custom_generate/generate.py"), wrote("LICENSE")),
        ["LICENSE", "additional_chat_templates/tool_use.jinja", "custom_generate/generate.py", WEIGHTS],
        [],
    ),
    "tensors without a place": (
        tensors(
            lambda found: (
                found
                | {
                    "model.layers.2.mtp.weight": torch.ones(3, 3),
                    "model.layers.0.self_attn.q_proj.bias": torch.ones(32),
                }
            )
        ),
        [WEIGHTS],
        [],
    ),
    "masks and positions": (
        tensors(
            lambda found: (
                found | {"model.layers.0.attn.bias": torch.ones(4, 4).byte(), "model.position_ids": torch.arange(4)}
            )
        ),
        [WEIGHTS],
        [],
    ),
    "an index of what is not there": (
        both(sharded(), in_index(lambda found: found["weight_map"].update({"no.such": SHARDS[0]}))),
        [*SHARDS, INDEX],
        [],
    ),
}
OURS = {"README.md", "manifest.json", "pruning.jsonl"}


@pytest.mark.parametrize("layout", LOADED)
def test_what_transformers_loads_is_pruned_and_the_rest_is_named(run, folder, pruned, tmp_path, layout):
    change, kept, left = LOADED[layout]
    change(folder)
    before = {name: (folder / name).read_bytes() for name in kept if not name.endswith(".safetensors")}
    out = tmp_path / "out"
    flags = ["--method", "magnitude", "--pattern", "2:4", *DENSE]
    code, _, errors = run("prune", folder, *flags, "--out", out)
    assert code == 0, errors
    copied = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert copied == {*kept, *USUAL, *OURS}
    assert all((out / name).read_bytes() == content for name, content in before.items())
    manifest = read_manifest(out) or {}
    assert manifest["left_behind"] == left
    assert ("Left behind in the copy" in errors) == bool(left)
    assert all(name in errors for name in left[:6])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert loaded.keys() == pruned.keys()
    assert all(torch.equal(loaded[name], pruned[name]) for name in pruned)
    dense, copy = Checkpoint(folder), Checkpoint(out)
    strays = [name for name in dense.names if name not in pruned]
    assert all(torch.equal(dense.read(name), copy.read(name)) for name in strays)


def test_what_is_left_behind_does_not_say_which_model_it_is(folder):
    before = resolve_model(str(folder)).digest
    wrote("pytorch_model.bin")(folder)
    assert resolve_model(str(folder)).digest == before
    wrote("additional_chat_templates/rag.jinja")(folder)
    assert resolve_model(str(folder)).digest != before


# Layouts that transformers does not load, or not alone

NOT_LOADED: dict[str, tuple[Change, str]] = {
    "shards without an index": (sharded(index=None), "has the shards model-00001-of-00002.safetensors, model-0"),
    "a variant": (moved(WEIGHTS, "model.fp16.safetensors"), r"the variant 'fp16' \(model.fp16.safetensors\)"),
    "shards of a variant": (
        sharded("model.bf16-{:05d}-of-00002.safetensors", "model.safetensors.index.bf16.json"),
        r"the variant 'bf16' \(model.bf16-00001-of-00002.safetensors\), .* variant='bf16'",
    ),
    "consolidated": (moved(WEIGHTS, "consolidated.safetensors"), "consolidated.safetensors, the weights under the"),
    "another name": (moved(WEIGHTS, "own.safetensors"), '"transformers_weights": "own.safetensors"'),
    "another format": (moved(WEIGHTS, "model-q4.gguf"), "model-q4.gguf, which Secateur does not read"),
    "nothing": (gone(WEIGHTS), "it has no weights. Download them"),
    "a link to nowhere": (linked(WEIGHTS, "nowhere"), "model.safetensors .*is a link to nowhere, which does not exist"),
    "a link in a circle": (linked(WEIGHTS, WEIGHTS), "is a link to model.safetensors, which does not exist"),
    "an index that is a link to nowhere": (both(sharded(), linked(INDEX, "nowhere")), "index.json cannot be read"),
    "a shard that is a link to nowhere": (
        both(sharded(), linked(SHARDS[1], "../nowhere")),
        "names model-00002-of-00002.safetensors, but it is a link to ../nowhere, which does not exist",
    ),
    "a shard too few": (both(sharded(), gone(SHARDS[1])), "names model-00002-of-00002.safetensors, but there is no"),
    "a folder instead of a shard": (
        both(sharded(), gone(SHARDS[1]), wrote(f"{SHARDS[1]}/x")),
        "names model-00002-of-00002.safetensors, but it is a folder",
    ),
    "an index without metadata": (both(sharded(), in_index(lambda found: found.pop("metadata"))), 'has no "metadata"'),
    "an empty index": (both(sharded(), in_index(lambda found: found.update(weight_map={}))), "names no files"),
    "an index that is a list": (both(sharded(), wrote(INDEX, "[]")), "index.json is damaged"),
    "an index that leads out": (
        both(sharded(), in_index(lambda found: found["weight_map"].update(a="../other.safetensors"))),
        "names ../other.safetensors, which is no safetensors file inside the model",
    ),
    "an index of pickles": (
        both(sharded(), in_index(lambda found: found["weight_map"].update(a="pytorch_model.bin"))),
        "names pytorch_model.bin, which is no safetensors file",
    ),
    "a tensor twice": (
        both(sharded(), lambda folder: put(folder, {"lm_head.weight": torch.ones(300, 32)}, SHARDS[1])),
        "lm_head.weight is stored twice in .*: in model-00001-of-00002.safetensors and in model-00002-of",
    ),
    "a name that leads nowhere": (config(transformers_weights="own.safetensors"), "'own.safetensors' .*has no such"),
    "a name that leads out": (config(transformers_weights="../model.safetensors"), "neither a safetensors file nor"),
    "a name of a pickle": (config(transformers_weights="pytorch_model.bin"), "neither a safetensors file nor"),
    "a name that is none": (config(transformers_weights=3), "weights are 3 .*neither a safetensors file nor"),
    "a pointer of Git LFS": (
        wrote(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        "is a pointer of Git LFS, not the weights themselves. Run 'git lfs pull'",
    ),
    "shards of ranks": (
        decoy("shard-00000-model-00001-of-00001.safetensors"),
        "the shards of a distributed checkpoint",
    ),
    "an adapter beside": (
        wrote("adapter_config.json", '{"base_model_name_or_path": "org/base"}'),
        r"holds an adapter for org/base \(adapter_config.json\) beside the model, .*merge_and_unload",
    ),
    "an adapter that cannot be read": (wrote("adapter_config.json", "["), r"holds an adapter \(adapter_config.json\)"),
    "an adapter alone": (
        both(gone("config.json", WEIGHTS), wrote("adapter_config.json", '{"base_model_name_or_path": "org/base"}')),
        r"holds an adapter for org/base \(adapter_config.json\), not a model",
    ),
    "a config.json that is a link to nowhere": (linked("config.json", "nowhere"), "json: it is a link to nowhere"),
    "a tokenizer that is a link to nowhere": (
        linked("tokenizer.json", "nowhere"),
        "The links tokenizer.json in it lead nowhere",
    ),
    "fp64": (tensors(lambda found: {name: one.double() for name, one in found.items()}), "are stored as F64; Secateur"),
}


@pytest.mark.parametrize("layout", NOT_LOADED)
def test_what_transformers_does_not_load_is_named(run, folder, layout, text_file, tmp_path):
    change, words = NOT_LOADED[layout]
    change(folder)
    text = ["--text", text_file, "--protocol", "document"]
    for command in (["prune", *DENSE, "--calibration", "self"], ["generate"], ["evaluate", *text]):
        code, printed, errors = run(command[0], folder, *command[1:], "--dry-run")
        assert (code, printed) == (2, ""), errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert_matches(words, errors)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("stored", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_weights_are_loaded_under_either_name(folder, stored):
    other = ({"model.embed_tokens.weight", "lm_head.weight"} - {stored}).pop()
    both(config(tie_word_embeddings=True), tensors(lambda found: {k: v for k, v in found.items() if k != other}))(
        folder
    )
    check_loadable(folder)
    model = load_model(folder)
    assert torch.equal(model.get_input_embeddings().weight, Checkpoint(folder).read(stored))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_head_that_is_not_there_is_noticed_beforehand(run, folder, text_file):
    """As in a classifier, which has a score instead."""
    tensors(
        lambda found: {k: v for k, v in found.items() if k != "lm_head.weight"} | {"score.weight": torch.ones(2, 32)}
    )(folder)
    config(architectures=["LlamaForSequenceClassification"])(folder)
    text = ["--text", text_file, "--protocol", "document"]
    for command in (["generate"], ["evaluate", *text]):
        code, _, errors = run(command[0], folder, *command[1:], "--dry-run")
        assert code == 2
        assert "lacks 1 of the weights" in errors
        assert "'lm_head.weight'" in errors


# Quantised

FP8 = torch.float8_e4m3fn


def packed(name: str) -> Change:
    """The weight of one linear, as 4-bit integers under another name."""
    other = QUERY.replace("weight", name)
    return tensors(
        lambda found: {k: v for k, v in found.items() if k != QUERY} | {other: torch.ones(32, 4, dtype=torch.int32)}
    )


def quantised(**values: Any) -> Change:
    return config(quantization_config=values)


QUANTISED: dict[str, tuple[Change, str]] = {
    "gptq": (both(quantised(quant_method="gptq", bits=4), packed("qweight")), r"\(gptq, 4 bits\); .*qweight is .* I32"),
    "gptq of old": (
        both(wrote("quantize_config.json", "{}"), packed("qweight")),
        "qweight is stored as I32",
    ),
    "awq": (both(quantised(quant_method="awq", bits=4), packed("qweight")), r"quantization_config \(awq, 4 bits\)"),
    "compressed-tensors": (
        both(quantised(quant_method="compressed-tensors", config_groups={}), packed("weight_packed")),
        r"\(compressed-tensors\); .*weight_packed is",
    ),
    "bitsandbytes": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True),
        r"quantization_config \(bitsandbytes\)",
    ),
    "mxfp4": (
        both(
            quantised(quant_method="mxfp4"),
            tensors(lambda found: found | {"a.experts.gate_up_proj_blocks": torch.ones(2, 2, 2, 4).byte()}),
        ),
        r"\(mxfp4\); a.experts.gate_up_proj_blocks is stored as U8",
    ),
    "fp8": (
        both(quantised(quant_method="fp8"), tensors(lambda found: found | {QUERY: found[QUERY].to(FP8)})),
        r"\(fp8\); .*q_proj.weight is stored as F8_E4M3",
    ),
    "fp8 of one linear, and no word of it": (
        both(wrote("hf_quant_config.json", "{}"), tensors(lambda found: found | {QUERY: found[QUERY].to(FP8)})),
        "q_proj.weight is stored as F8_E4M3. Secateur",
    ),
    "int8 of two linears, and no word of it": (
        tensors(
            lambda found: (
                found | {name: torch.ones(32, 32).char() for name in (QUERY, QUERY.replace("q_proj", "o_proj"))}
            )
        ),
        "o_proj.weight and 1 more are stored as I8",
    ),
    "mlx": (
        both(
            config(quantization={"bits": 4, "group_size": 64}), tensors(lambda t: t | {QUERY: torch.ones(32, 4).int()})
        ),
        r"quantization \(4 bits\); .*q_proj.weight is stored as I32",
    ),
    "an empty quantization_config": (quantised(), "has quantization_config. Secateur"),
    "a method that nobody knows": (quantised(quant_method="xyz"), r"quantization_config \(xyz\)"),
    "in text_config": (
        config(text_config={"quantization_config": {"quant_method": "awq"}}),
        r"text_config.quantization_config \(awq\)",
    ),
    "compression_config": (config(compression_config={"quantization_config": {}, "config_groups": {"a": 1}}), "compr"),
    "bare": (config(load_in_8bit=True), "load_in_8bit True"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_are_refused_before_anything_is_made(run, folder, tmp_path, text_file, kind):
    change, words = QUANTISED[kind]
    change(folder)
    code, printed, errors = run("prune", folder, *FEW, *DENSE)
    assert (code, printed) == (2, "")
    assert_matches(f"The model .* is quantised: .*{words}", errors)
    assert "take the unquantised original" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "store").exists()
    code, _, errors = run("evaluate", folder, "--text", text_file, "--protocol", "document")
    assert code in (0, 2)  # what transformers can load is measured
    assert errors.startswith("error: ") == (code == 2)


@pytest.mark.parametrize("value", [None, ...])
def test_models_that_only_could_say_that_they_are_quantised_are_not(run, folder, value):
    config(quantization_config=value)(folder)
    assert run("prune", folder, "--dry-run", "--method", "magnitude", *DENSE)[0] == 0
