"""The command line: exit codes, streams, sentences for bad input; what it makes loads in transformers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from conftest import CONFIGS, save_model, tiny_tokenizer
from secateur.cli.ls import CONTENTS
from secateur.cli.main import COMMANDS, main
from secateur.models.checkpoint import Checkpoint
from secateur.pipeline.store import read_manifest

SMALL = ["--set", "calibration.samples=6", "--set", "calibration.length=24", "--set", "evaluation.protocol=concat-32"]


@pytest.fixture
def run(tmp_path, capsys):
    """Run a command with a store of its own; returns its exit code, stdout and stderr."""

    def call(*arguments: object, store: Path = tmp_path / "store") -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--store", str(store)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def prune(run, llama, text_file):
    def call(*arguments: object, model: Path = llama) -> tuple[int, str, str]:
        return run("prune", model, *SMALL, "--set", f"evaluation.text={text_file}", *arguments)

    return call


def test_help_and_lists_need_no_torch():
    commands = [["--help"], ["--version"], ["ls"], *(["ls", what] for what in CONTENTS)]
    code = "import sys; from secateur.cli.main import main\n"
    code += f"for one in {commands}: assert main(one) == 0 and not {{'torch', 'transformers'}} & set(sys.modules), one"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert COMMANDS[command].split(",")[0].split(":")[0].rstrip(".") in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_main_job_end_to_end(prune, tmp_path, llama):
    out = tmp_path / "pruned"
    code, printed, errors = prune("--pattern", "2:4", "--out", out)
    assert code == 0
    assert "50.00% of the prunable weights (2:4)" in printed
    assert "perplexity     dense" in printed
    assert "Jensen-Shannon" in printed
    assert "generations:" in errors
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(out)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert ((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all()
    assert (out / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    card = (out / "README.md").read_text()
    assert "text the dense model wrote itself" in card
    assert "bit-identical" in card
    manifest = read_manifest(out)
    assert {"spec", "libraries", "hardware", "phases", "files", "calibration"} <= manifest.keys()
    assert manifest["recipe"]["seed"] == 0
    assert manifest["files"]["model.safetensors"]
    calibration = Path(manifest["calibration"]["folder"])
    for name in ("samples.jsonl", "kept.jsonl", "dropped.jsonl", "README.md", "manifest.json"):
        assert (calibration / name).exists()
    assert len((calibration / "samples.jsonl").read_text().splitlines()) == 6

    again, printed, errors = prune("--pattern", "2:4", "--out", out)
    assert again == 0
    assert "generations" not in errors  # all of it was there


def test_json_goes_to_stdout_alone(prune):
    code, printed, _ = prune("--json", "--method", "magnitude")
    found = json.loads(printed)
    assert code == 0
    assert found["calibration"] is None
    assert found["manifest"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["scores"]["perplexity"]["value"] > 0


def test_quiet_says_nothing_but_the_result(prune):
    _, printed, errors = prune("-q", "--method", "magnitude")
    assert errors == ""
    assert "pruned model" in printed


@pytest.mark.parametrize("source", ["random-tokens", "prose", "site-packages", "stdlib-train", "self", "FILE"])
@pytest.mark.parametrize("packing", ["concat", "document"])
def test_every_source_and_packing(prune, text_file, source, packing):
    name = text_file if source == "FILE" else source
    code, printed, errors = prune("--calibration", name, "--set", f"calibration.packing={packing}", "--json", "-q")
    assert code == 0, errors
    manifest = json.loads(printed)["manifest"]
    assert manifest["calibration"]["samples"] == 6
    assert manifest["calibration"]["tokens"] == 6 * 24


def test_the_whole_job_on_every_architecture(prune, any_model, tmp_path):
    code, printed, errors = prune("--method", "sparsegpt", "--json", model=any_model)
    assert code == 0, errors
    folder = json.loads(printed)["folder"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        assert model(torch.tensor([[0, 5, 6]])).logits.isfinite().all()


def test_a_set_made_beforehand_is_used_as_it_is(run, prune, llama, tmp_path):
    code, printed, _ = run("generate", llama, *SMALL, "--out", tmp_path / "set")
    assert code == 0
    assert "were dropped" in printed
    digest = read_manifest(tmp_path / "set")["set_digest"]
    _, printed, _ = prune("--calibration", tmp_path / "set", "--json")
    assert json.loads(printed)["manifest"]["calibration"]["set_digest"] == digest
    assert run("generate", llama, "--calibration", tmp_path / "set")[0] == 2


def test_a_pruned_model_can_be_pruned_further(prune, tmp_path):
    assert prune("--sparsity", "0.4", "--out", tmp_path / "a")[0] == 0
    code, printed, _ = prune("--sparsity", "0.7", "--out", tmp_path / "b", model=tmp_path / "a")
    assert code == 0
    assert "68.75% of" in printed  # 22 of 32 and 44 of 64 weights a row


def test_evaluate_knows_the_dense_model(run, prune, text_file, tmp_path):
    prune("--out", tmp_path / "a")
    code, printed, _ = run("evaluate", tmp_path / "a", "--text", text_file, "--protocol", "document", "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["scores"]["perplexity"]["protocol"] == "document"
    assert found["scores"]["fidelity"]["kl"] > 0
    assert found["dense_scores"]["perplexity"]["value"] != found["scores"]["perplexity"]["value"]


def test_inspect_check_and_runs(run, prune, tmp_path, llama):
    out = tmp_path / "store" / "pruned" / "a"
    prune("--pattern", "2:4", "--out", out)
    code, printed, _ = run("inspect", out)
    assert code == 0
    assert re.search(r"up_proj +2 +4,096 +50\.00% +2:4", printed)
    assert re.search(r" by wanda, 2:4, on 6 samples, [\d,]+ tokens, of self \(set [0-9a-f]{12}\)\n", printed)
    kinds = json.loads(run("inspect", llama, "--json")[1])["kinds"]
    assert all(kind["sparsity"] == 0 and kind["pattern"] == "-" for kind in kinds)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {llama}\npruning: {{method: sparsegpt, pattern: 2:4}}\nevaluation: {{enabled: false}}\n")
    code, printed, _ = run("check", recipe)
    assert code == 0
    assert "sparsegpt, 2:4, sparsity 0.5" in printed
    code, printed, _ = run("ls", "runs")
    rows = {row.split()[0]: row for row in printed.splitlines()[2:]}
    assert {"calibration", "evaluation"} <= rows.keys()
    assert "self, 6 samples" in rows["calibration"]
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d  ", rows["calibration"])
    found = json.loads(run("ls", "runs", "--json")[1])
    assert [row["finished"] for row in found] == sorted((row["finished"] for row in found), reverse=True)
    pruned = next(row for row in found if row["kind"] == "pruned")
    assert pruned["what"] == f"{llama}, wanda, 2:4"
    measured = [row["what"].partition(" on ")[0] for row in found if row["kind"] == "evaluation"]
    assert sorted(measured) == sorted([str(llama), "a"])


def test_a_calibration_set_in_short(run, llama, tmp_path):
    run("generate", llama, *SMALL, "--calibration", "random-tokens", "--out", tmp_path / "set")
    code, printed, _ = run("inspect", tmp_path / "set")
    assert code == 0
    assert re.search(r"samples +6 of 24 tokens from 'random-tokens'", printed)
    assert len(printed.splitlines()) < 10
    assert json.loads(run("inspect", tmp_path / "set", "--json")[1]) == read_manifest(tmp_path / "set")


@pytest.mark.parametrize("what", list(CONTENTS))
def test_all_that_is_said_to_be_listed_is(run, what):
    code, printed, _ = run("ls", what)
    assert code == 0
    assert printed
    assert what in COMMANDS["ls"]
    assert what in run("ls")[1]


def test_a_dry_run_runs_nothing(prune, tmp_path):
    code, printed, _ = prune("--dry-run", "--out", tmp_path / "a")
    assert code == 0
    assert "Nothing was run" in printed
    assert "pruning alone" in printed
    assert "making the calibration set and measuring come on top" in printed
    assert not (tmp_path / "a").exists()
    assert not list((tmp_path / "store").glob("**/*.jsonl"))


def test_a_dry_run_of_a_set_or_an_evaluation_says_whether_it_is_there(run, llama, text_file):
    for command, made in (
        (["generate", llama, *SMALL, "--calibration", "random-tokens"], "6 samples of 24 tokens from 'random-tokens'"),
        (["evaluate", llama, *SMALL, "--text", text_file], "concat-32"),
    ):
        code, printed, _ = run(*command, "--dry-run")
        assert code == 0
        assert made in printed
        assert "to be made" in printed
        assert "Nothing was run" in printed
        assert run(*command, "-q")[0] == 0
        assert "there already" in run(*command, "--dry-run")[1]
        found = json.loads(run(*command, "--dry-run", "--json")[1])
        assert [one["ready"] for one in (found if isinstance(found, list) else [found])] == [True]


def test_samples_and_length_are_flags_of_prune_too(run, llama, text_file):
    flags = ["--samples", 5, "--length", 20, "--set", f"evaluation.text={text_file}"]
    found = json.loads(run("prune", llama, *flags, "--dry-run", "--json")[1])["calibration"]["spec"]
    assert (found["samples"], found["length"]) == (5, 20)


@pytest.mark.parametrize("command", ["prune", "generate", "evaluate", "mix", "recommend"])
def test_no_model_is_taken_unasked(run, command):
    code, printed, errors = run(command)
    assert (code, printed) == (2, "")
    assert f"Which model? `secateur {command} reference`" in errors
    assert "The recipe 'quick' names none" in run(command, "--recipe", "quick")[2]


def test_a_model_may_be_named_in_a_recipe(run, tmp_path):
    own = tmp_path / "r.yaml"
    own.write_text("calibration: {samples: 2, length: 16, source: random-tokens}\n")
    for arguments in (["reference", "--recipe", "quick"], [own], ["--recipe", own], ["--set", "model=reference"]):
        code, printed, errors = run("generate", *arguments, "--dry-run")
        assert code == 0, errors
        assert re.search("model +reference", printed)


def test_what_is_left_out_is_said_as_the_help_says_it(run, capsys):
    for command, needed in {
        "inspect": "TARGET",
        "profile": "SETS",
        "export": "SET",
        "report": "DIR",
        "check": "RECIPE",
        "import": "DATA",
    }.items():
        assert main([command]) == 2
        assert capsys.readouterr().err == (
            f"error: `secateur {command}` needs {needed}: `secateur {command} --help` shows how.\n"
        )
        assert main([command, "--help"]) == 0
        assert f"{needed} " in capsys.readouterr().out
    assert main(["export", "set"]) == 2
    assert "`secateur export` needs --out:" in capsys.readouterr().err
    code, _, errors = run("study")
    assert code == 2
    assert "quick, " in errors


def test_an_option_that_is_a_value_of_the_recipe(run):
    errors = run("generate", "reference", "--temperature", 1)[2]
    assert "--set calibration.generation.temperature=VALUE" in errors
    assert "--set evaluation.limit=VALUE" in run("prune", "reference", "--limit=3")[2]
    assert "--set" not in run("inspect", "reference", "--temperature", 1)[2]
    assert "Did you mean --sparsity?" in run("prune", "reference", "--sparsty", 1)[2]


@pytest.mark.parametrize("name", ["refrence", "no-such-org/no-such-model"])
def test_a_model_that_is_none(run, monkeypatch, name):
    import huggingface_hub

    def fail(*_args, **_options):
        raise OSError("Got: ConnectError: no name\nAn error happened while trying to locate the files. Please check.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    code, _, errors = run("generate", name, "--dry-run")
    assert code == 2
    assert f"There is no folder '{name}'" in errors
    assert ("did you mean 'reference' (the bundled model)?" in errors) == (name == "refrence")
    assert "As a Hub id it could not be fetched: ConnectError: no name. Check" in errors
    assert "Please check" not in errors


def test_a_pruned_model_is_no_calibration_data(run, prune, llama, tmp_path):
    prune("--method", "magnitude", "--set", "evaluation.enabled=false", "--out", tmp_path / "pruned")
    for command in ("prune", "generate"):
        code, _, errors = run(command, llama, *SMALL, "--calibration", tmp_path / "pruned")
        assert code == 2
        assert "is a pruned model, neither text nor a calibration set" in errors
    assert f"{llama} is a model, neither" in run("generate", llama, "--calibration", llama)[2]


BAD = {
    "unknown method": (["--method", "wandaa"], "did you mean 'wanda'"),
    "unknown source": (["--calibration", "prosa"], "did you mean 'prose'"),
    "missing file": (["--calibration", "nothing.jsonl"], "There is no file or folder"),
    "unknown pattern": (["--pattern", "2-4"], "There is no pattern '2-4'"),
    "pattern the wrong way round": (["--pattern", "4:2"], "did you mean '2:4'"),
    "N:M that does not fit": (["--pattern", "2:5"], "do not divide into groups of 5"),
    "sparsity 0": (["--sparsity", "0"], "not strictly between 0 and 1"),
    "sparsity 1": (["--sparsity", "1"], "not strictly between 0 and 1"),
    "sparsity nan": (["--sparsity", "nan"], "not strictly between 0 and 1"),
    "contradiction": (["--pattern", "2:4", "--sparsity", "0.6"], "contradicts the pattern 2:4"),
    "unknown key": (["--set", "prunning.method=wanda"], "did you mean 'pruning'"),
    "unknown setting": (["--set", "pruning.method={name: wanda, x: 1}"], "no setting 'x'"),
    "too few tokens": (["--calibration", "FILE", "--set", "calibration.samples=9000"], "but it yields"),
    "too long samples": (["--set", "calibration.length=65"], "made for 64 positions"),
    "too short samples": (["--set", "calibration.length=3"], "leave nothing to generate"),
    "offline corpus": (["--calibration", "no-such-org/no-such-set"], "give a local file"),
    "bad protocol": (["--set", "evaluation.protocol=concat32"], "no perplexity protocol"),
    "missing evaluation text": (
        ["--set", "evaluation.text=nothing.txt"],
        "There is no file or folder nothing.txt, which was named as the text to measure on (evaluation.text)",
    ),
    "missing prefixes": (["--set", "calibration.generation.prefixes=nothing.txt"], "named as text (for prefixes,"),
    "unknown device": (["--device", "gpu"], "There is no device 'gpu'"),
    "unknown skip": (["--set", "pruning.skip=[foo]"], "matches no linear"),
    "unknown flag": (["--sparsty", "0.5"], ""),
    "unknown dtype": (["--set", "dtype=float8"], "'float32', 'bfloat16' or 'float16'"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_gets_a_sentence_and_exit_code_2_and_writes_nothing(prune, tmp_path, text_file, case):
    arguments, words = BAD[case]
    out = tmp_path / "out"
    code, printed, errors = prune(*(str(text_file) if a == "FILE" else a for a in arguments), "--out", out)
    assert code == 2
    assert words in " ".join(errors.split())
    assert "Traceback" not in errors
    assert printed == ""
    assert not out.exists()


def damaged(tmp_path: Path, how: str) -> Path:
    model = save_model(CONFIGS["llama"](), tmp_path / "model")
    weights, config = model / "model.safetensors", model / "config.json"
    if how == "no weights":
        weights.unlink()
    elif how == "only pickle":
        weights.rename(model / "pytorch_model.bin")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "not safetensors":
        weights.write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    elif how == "broken index":
        weights.unlink()
        (model / "model.safetensors.index.json").write_text('{"weight_map"')
    elif how == "missing shard":
        weights.unlink()
        (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    elif how == "broken config":
        config.write_text("{")
    elif how == "unknown type":
        config.write_text('{"model_type": "nonesuch"}')
    elif how == "wrong heads":
        config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 0'))
    elif how == "too many blocks":
        config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    elif how == "wrong width":
        config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 80'))
    elif how == "no tokenizer":
        for path in model.glob("tokenizer*"):
            path.unlink()
    elif how == "not finite":
        checkpoint = Checkpoint(model)
        name = "model.layers.0.self_attn.v_proj.weight"
        checkpoint.patch({name: torch.full_like(checkpoint.read(name), float("inf"))})
    return model


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "no weights": "has no model.safetensors",
        "only pickle": "which Secateur does not read",
        "truncated": "truncated or damaged",
        "not safetensors": "truncated or damaged",
        "broken index": "is damaged",
        "missing shard": "no such file beside it",
        "broken config": "cannot read",
        "unknown type": "cannot read",
        "wrong heads": "config.json",
        "too many blocks": "lacks 9 of the weights",
        "wrong width": "config.json asks for",
        "no tokenizer": "has no tokenizer",
        "not finite": "not finite",
    }.items(),
)
@pytest.mark.parametrize("command", ["prune", "generate", "evaluate"])
def test_damaged_models(run, tmp_path, text_file, how, words, command):
    model = damaged(tmp_path, how)
    arguments = {
        "prune": ["--calibration", text_file, "--out", tmp_path / "out"],
        "generate": ["--out", tmp_path / "out"],
        "evaluate": ["--text", text_file],
    }[command]
    code, _, errors = run(command, model, *arguments, *SMALL, "--set", f"evaluation.text={text_file}")
    assert code == 2
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    if command == "prune":
        assert words in " ".join(errors.split())


def test_a_tied_head_cannot_be_pruned(run, tmp_path):
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    model = save_model(config, tmp_path / "tied")
    code, _, errors = run("prune", model, "--set", "pruning.head=true")
    assert code == 2
    assert "tied to its input embeddings" in errors


def test_a_set_for_another_vocabulary_is_refused(run, prune, llama, tmp_path):
    run("generate", llama, *SMALL, "--calibration", "random-tokens", "--out", tmp_path / "set")
    config = CONFIGS["llama"]()
    config.vocab_size = 100
    smaller = save_model(config, tmp_path / "smaller")
    code, _, errors = prune("--calibration", tmp_path / "set", model=smaller)
    assert code == 2
    assert "was made for" in errors
    assert "has only 100 tokens" in errors


def test_an_output_folder_with_something_else_in_it(prune, tmp_path):
    out = tmp_path / "out"
    assert prune("--sparsity", "0.4", "--out", out)[0] == 0
    code, _, errors = prune("--sparsity", "0.6", "--out", out)
    assert code == 2
    assert "sparsity was 0.4, now 0.6" in errors
    assert "generations" not in errors  # noticed before anything was run
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    assert "was not made by Secateur" in prune("--out", tmp_path / "mine")[2]
    assert (tmp_path / "mine" / "precious").read_text() == "x"


def test_a_store_that_is_a_file(run, llama, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, errors = run("generate", llama, *SMALL, store=tmp_path / "file")
    assert code == 2
    assert "Traceback" not in errors


def test_a_disk_that_fills_up_while_pruning(prune, tmp_path, monkeypatch):
    import errno

    patch = Checkpoint.patch
    calls = []

    def full(self, tensors):
        calls.append(1)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / "model.safetensors"))
        patch(self, tensors)

    monkeypatch.setattr(Checkpoint, "patch", full)
    out = tmp_path / "out"
    code, _, errors = prune("--out", out)
    assert code == 2
    assert "the disk is full" in errors
    assert not out.exists()
    assert prune("--out", out)[0] == 0  # 14 linears: the first block is not pruned again
    assert len(calls) == 9 + 7


def test_an_interruption_says_how_to_go_on(prune, monkeypatch):
    from secateur.pruning import loop

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "collect", stop)
    code, _, errors = prune()
    assert code == 130
    assert "run the same command again" in errors


def test_a_bad_result_is_exit_code_1(prune, monkeypatch, tmp_path):
    from secateur.errors import VerificationError
    from secateur.pipeline import pruning_run as stage

    def fail(*_args):
        raise VerificationError("not what it should be")

    monkeypatch.setattr(stage, "verify", fail)
    assert prune("--out", tmp_path / "out")[0] == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_begin_token(run, tmp_path, text_file):
    model = save_model(CONFIGS["gpt_neox"](), tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.bos_token = None
    tokenizer.save_pretrained(model)
    rest = [*SMALL, "--set", f"evaluation.text={text_file}"]
    code, printed, errors = run("prune", model, *rest, "--json", "-q")
    assert code == 0, errors
    assert json.loads(printed)["manifest"]["calibration"]["tokens"] == 6 * 24
    code, _, errors = run("prune", model, *rest, "--set", "calibration.bos=sample")
    assert code == 2
    assert "has no begin token" in errors
