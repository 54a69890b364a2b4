"""Values of config.json: those that are ours to choose change nothing, those that make no model are refused at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from changed_folders import (
    DENSE,
    FEW,
    Change,
    assert_matches,
    config,
    put,
    wrote,
)
from conftest import save_model
from secateur.cli.main import main
from secateur.errors import ModelError
from secateur.models.configuration import empty_model, max_positions, read_config, vocabulary_size
from secateur.models.layout import WEIGHTS
from secateur.models.loading import load_model


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


KERNELS: dict[str, dict[str, Any]] = {
    "that is not here": {"attn_implementation": "flash_attention_2"},
    "privately": {"_attn_implementation": "flash_attention_3"},
    "that does not exist": {"attn_implementation": "nonsense"},
    "from the Hub": {"attn_implementation": "kernels-community/flash-attn"},
    "of pages": {"attn_implementation": "paged|sdpa"},
    "by part": {"attn_implementation": {"": "flash_attention_2"}},
    "that is a number": {"attn_implementation": 3},
    "for experts": {"experts_implementation": "nonsense"},
    "none": {"attn_implementation": None},
    "the usual": {"attn_implementation": "sdpa"},
    "another that is here": {"attn_implementation": "eager"},
}


@pytest.mark.parametrize("name", KERNELS)
def test_skeleton_and_loaded_model_choose_the_same_kernels(folder, name):
    config(**KERNELS[name])(folder)
    expected = "eager" if "eager" in KERNELS[name].values() else "sdpa"
    for model in (empty_model(folder, torch.float32), load_model(folder)):
        assert model.config._attn_implementation == expected
        assert model.config._experts_implementation in ("eager", "grouped_mm")


WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "kernels that are not here": {"attn_implementation": "flash_attention_2", "experts_implementation": "deepgemm"},
    "tuples": {"return_dict": False},
    "more outputs": {"output_hidden_states": True, "output_attentions": True},
    "no cache, another dtype, another class": {
        "use_cache": False,
        "dtype": "float16",
        "architectures": ["LlamaForSequenceClassification"],
        "quantization_config": None,
        "tie_word_embeddings": ...,
    },
    "what is not for here": {
        "auto_map": {"AutoConfig": "conf.X", "AutoModelForCausalLM": "modeling.X"},
        "fusion_config": {"no_such": True},
        "pruned_heads": {"0": [1]},
        "dtype": "int8",
        "temperature": 0.1,
        "do_sample": True,
    },
}


@pytest.fixture(scope="module")
def usual(llama, text_file, tmp_path_factory):
    """What is made of the model as it is."""
    return made(llama, text_file, tmp_path_factory.mktemp("usual"))


def made(model: Path, text_file: Path, place: Path) -> tuple[bytes, list[list[int]]]:
    """Prune by Wanda, measure, and write a set: the bytes of the weights, and the ids written."""
    store = ["--store", str(place / "store"), "-q"]
    flags = [*FEW, *DENSE, "--calibration", str(text_file), "--out", str(place / "out")]
    assert main(["prune", str(model), *flags, *store]) == 0
    text = ["--text", str(text_file), "--protocol", "concat-32"]
    assert main(["evaluate", str(place / "out"), *text, *store]) == 0
    flags = ["--samples", "3", "--length", "12", "--out", str(place / "set")]
    assert main(["generate", str(model), *flags, *store]) == 0
    written = (place / "set" / "samples.jsonl").read_text().splitlines()
    return (place / "out" / WEIGHTS).read_bytes(), [json.loads(line)["token_ids"] for line in written]


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_values_that_change_nothing(folder, text_file, tmp_path, usual, name):
    config(**WITHOUT_EFFECT[name])(folder)
    weights, written = made(folder, text_file, tmp_path)
    assert weights == usual[0]
    assert written == usual[1]


NO_MODEL: dict[str, tuple[Change, str]] = {
    "an activation": (config(hidden_act="swish2"), "hidden_act is 'swish2', which it does not know"),
    "a rope": (
        config(rope_parameters={"rope_type": "wobbly", "rope_theta": 10000.0}),
        "rope_parameters.rope_type is 'wobbly', which it does not know",
    ),
    "a rope of old": (
        config(rope_parameters=..., rope_scaling={"rope_type": "wobbly", "factor": 2.0}),
        "rope_scaling.rope_type is 'wobbly'",
    ),
    "an incomplete rope": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "'factor'"),
    "a dtype": (config(dtype=..., torch_dtype="floaty"), "torch_dtype is 'floaty', which is no dtype of PyTorch"),
    "a function instead of a dtype": (config(dtype="load"), "dtype is 'load', which is no dtype of PyTorch"),
    "no blocks": (config(num_hidden_layers=0), "num_hidden_layers is 0, and must be at least 1"),
    "blocks below zero": (config(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "a block too many": (config(num_hidden_layers=3), "lacks 9 of the weights"),
    "no width": (config(hidden_size=-32), "hidden_size is -32"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "no heads for keys": (config(num_key_value_heads=0), "division"),
    "no tokens": (config(vocab_size=0), "vocab_size is 0"),
    "more tokens": (config(vocab_size=400), r"has the shape \(300, 32\), but config.json asks for \(400, 32\)"),
    "more width": (config(hidden_size=64), r"has the shape \(300, 32\), but config.json asks for \(300, 64\)"),
    "words instead of numbers": (config(rms_norm_eps="small"), "rms_norm_eps"),
    "a window of words": (config(sliding_window="wide"), "sliding_window is 'wide', and must be a whole number"),
    "no type": (config(model_type=...), "it has no model_type"),
    "an unknown type": (config(model_type="xyz"), "it does not know the model_type 'xyz'. Use a newer transformers"),
    "a type that brings its code": (
        config(model_type="xyz", auto_map={"AutoConfig": "conf.X"}),
        "it brings its own code, which Secateur does not run",
    ),
    "a number as type": (config(model_type=3), "it does not know the model_type 3"),
    "an encoder-decoder": (config(model_type="t5"), "transformers has no causal language model for T5Config"),
    "an encoder-decoder by its flag": (config(is_encoder_decoder=True), "is an encoder-decoder model by its config"),
    "pictures": (config(model_type="clip"), "transformers has no causal language model for CLIPConfig"),
    "two models in one": (config(model_type="musicgen"), "describes several language models in one"),
    "outputs that contradict the kernel": (config(output_attentions=True, attn_implementation="sdpa"), "output_attent"),
    "a list": (wrote("config.json", "[]"), "it holds a list instead of an object"),
    "null": (wrote("config.json", "null"), "instead of an object"),
    "half of it": (wrote("config.json", '{"model_type": "llama",'), "it is no JSON"),
    "no text": (wrote("config.json", b"\xff\xfe\0"), "it is no JSON"),
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_values_that_make_no_model(run, folder, tmp_path, text_file, name):
    change, words = NO_MODEL[name]
    change(folder)
    text = ["--text", text_file, "--protocol", "document"]
    for command in (["prune", *DENSE, "--calibration", "self"], ["generate"], ["evaluate", *text]):
        code, printed, errors = run(command[0], folder, *command[1:], "--dry-run")
        assert (code, printed) == (2, ""), errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert_matches(words, errors)
    assert not (tmp_path / "store").exists()


def test_end_tokens_that_are_no_ids(run, folder, text_file):
    wrote("generation_config.json", json.dumps({"eos_token_id": "</s>"}))(folder)
    for command in (["generate"], ["evaluate", "--text", text_file, "--protocol", "document"]):
        code, _, errors = run(command[0], folder, *command[1:], "--dry-run")
        assert code == 2
        assert "generation_config.json names '</s>' as what ends a text (eos_token_id); that must be an id" in errors


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ({"model_type": "llama", "max_position_embeddings": 512}, 512),
        ({"model_type": "llama", "max_position_embeddings": -1}, None),
        ({"model_type": "llama", "max_position_embeddings": 0}, None),
        ({"model_type": "gpt2", "n_positions": 77, "vocab_size": 300}, 77),
        ({"model_type": "mpt", "max_seq_len": 99}, 99),
        ({"model_type": "mamba"}, None),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 123, "vocab_size": 300}}, 123),
        ({"model_type": "qwen2_5_vl", "text_config": {"max_position_embeddings": 55, "vocab_size": 300}}, 55),
        ({"model_type": "llava", "text_config": {"model_type": "mistral", "max_position_embeddings": 44}}, 44),
    ],
)
def test_sizes_are_those_of_the_part_about_text(tmp_path, values, positions):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert max_positions(tmp_path) == positions
    text = values.get("text_config", values)
    assert vocabulary_size(tmp_path) == text.get("vocab_size", vocabulary_size(tmp_path))


def test_wishes_of_a_part_are_not_ours_either(tmp_path):
    part = {"attn_implementation": "flash_attention_2", "return_dict": False, "output_hidden_states": True}
    values = {"model_type": "gemma3", "text_config": {"vocab_size": 300, **part}, "vision_config": part}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path)
    for one in (found, found.text_config, found.vision_config):
        assert one._attn_implementation is None
        assert one.return_dict
        assert not one.output_hidden_states


def test_weights_named_for_the_whole_of_a_model_that_is_built_from_its_part(tmp_path):
    values = {"model_type": "qwen3_5", "transformers_weights": "own.safetensors", "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    put(tmp_path, {"a": torch.ones(1)}, "own.safetensors")
    with pytest.raises(ModelError, match="builds the language model of Qwen3_5Config from its text_config"):
        empty_model(tmp_path, torch.float32)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, "norm"), (torch.bfloat16, None), (torch.float32, None)])
def test_a_model_keeps_the_precision_that_it_insists_on(tmp_path, dtype, wide):
    """GPT-OSS wants its norms in float32 where it is computed in float16."""
    config = transformers.GptOssConfig(
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "max_position_embeddings": 64},
    )
    model = load_model(save_model(config, tmp_path, torch.bfloat16), dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if wide and wide in name else dtype), name


def test_a_model_that_insists_in_every_half_precision(tmp_path):
    config = transformers.Ernie4_5_MoeConfig(
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "moe_k": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "moe_num_experts": 4, "moe_intermediate_size": 16},
    )
    folder = save_model(config, tmp_path, torch.bfloat16)
    for dtype in (torch.float16, torch.bfloat16):
        wide = {name for name, one in load_model(folder, dtype=dtype).named_parameters() if one.dtype == torch.float32}
        assert wide == {"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"}
