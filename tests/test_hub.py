"""Models from the Hub: its own client library, and a server that is not the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import transformers

from changed_folders import (
    DENSE,
    SHARDS,
    USUAL,
    Change,
    assert_matches,
    both,
    config,
    moved,
    sharded,
)
from fake_hub import FakeHub, in_place_of_the_hub
from secateur.cli.main import main
from secateur.models.layout import INDEX, WEIGHTS
from secateur.models.locate import locate_model
from secateur.pipeline.components import resolve_model


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    served = FakeHub()
    with in_place_of_the_hub(served, tmp_path / "cache", monkeypatch):
        yield served


BESIDE = [
    *("model.fp16.safetensors", "consolidated.safetensors", "params.json", "model-q4.gguf", "README.md", "figure.png"),
    *("original/consolidated.00.pth", "original/params.json", "onnx/model.onnx", "onnx/config.json", ".gitattributes"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
]
"""Files of a repository that are not used. The content of each is its name: the cache has equal files once."""

ALONG = ["LICENSE", "NOTICE.md", "USE_POLICY.md", "additional_chat_templates/rag.jinja", "modeling_own.py"]


@pytest.mark.parametrize("layout", ["one file", "shards", "one file and shards", "named"])
def test_of_a_repository_what_is_used_is_fetched_once(hub, folder, run, layout, monkeypatch):
    change: dict[str, Change] = {
        "shards": sharded(),
        "one file and shards": sharded(decoy=True),
        "named": both(moved(WEIGHTS, "own.safetensors"), config(transformers_weights="own.safetensors")),
    }
    change.get(layout, lambda _: None)(folder)
    used = {"shards": [*SHARDS, INDEX], "named": ["own.safetensors"]}.get(layout, [WEIGHTS])
    hub.add("org/model", folder)
    hub.files["org/model"] |= {name: name.encode() for name in (*BESIDE, *ALONG)}
    expected = sorted([*used, *USUAL, *ALONG])
    code, _, errors = run("prune", "org/model", "--method", "magnitude", "--dry-run", *DENSE)
    assert code == 0, errors
    extra = [INDEX] if layout == "one file and shards" else []  # it says which shards there are, if they are used
    assert sorted(hub.sent) == sorted(expected + extra)
    found = locate_model("org/model")
    assert resolve_model("org/model").revision == found.name
    assert len(hub.sent) == len(expected + extra)  # once is enough
    for offline in (True, False):  # and the cache does without the Hub
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        hub.files.clear()
        assert locate_model("org/model") == found
    assert transformers.AutoModelForCausalLM.from_pretrained(found).config.vocab_size == 300


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "consolidated.safetensors": b"x"},
            "it has consolidated.safetensors, the weights under",
        ),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "it has pytorch_model.bin, which Secateur does not read"),
        (
            {"config.json": b"{}", "README.md": b"x"},
            "The model org/model on the Hub has no model.safetensors .*no weights",
        ),
        (
            {"model-q4.gguf": b"x"},
            "has no config.json, so it is not a model that transformers loads; it has model-q4.gguf",
        ),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "holds an adapter .*, not a model"),
        ({"adapter_config.json": b"{}", "config.json": b"{}", WEIGHTS: b"x"}, "holds an adapter .* beside the model"),
        (
            {"config.json": b"{}", INDEX: b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}'},
            "names b.safetensors, but",
        ),
        (
            {"config.json": b"{}", INDEX: b"{}"},
            "The index model.safetensors.index.json of the model org/model .*damaged",
        ),
        (
            {"config.json": b'{"transformers_weights": "a.safetensors"}', WEIGHTS: b"x"},
            "'a.safetensors' .*no such file",
        ),
    ],
)
def test_repositories_without_weights_that_are_loaded(hub, run, files, words):
    hub.files["org/model"] = files
    code, _, errors = run("generate", "org/model", "--dry-run")
    assert code == 2
    assert_matches(words, errors)
    assert not {name for name in hub.sent if name.endswith((".bin", ".safetensors", ".gguf"))}


def test_a_repository_that_there_is_not(hub, run):
    code, _, errors = run("generate", "org/other", "--dry-run")
    assert code == 2
    assert "As a Hub id it could not be fetched: the Hub has no model of this name, or it is private" in errors
