"""Sharing calibration sets: every format, there and back; what others' data may look like; a sentence for what it may not."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet

from conftest import VOCABULARY, tiny_tokenizer
from secateur import Recipe, export_set, generate, import_set, load_recipe
from secateur.calibration.exchange import FORMATS
from secateur.calibration.sample import Sample, read_samples
from secateur.cli.main import main
from secateur.errors import CalibrationError, ModelError, SecateurError, StoreError, UsageError
from secateur.pipeline.calibrate import check_set, existing_set, plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.store import read_manifest
from secateur.reports.set_card import set_card

IDS = ["hf", "parquet", "jsonl", "jsonl.gz"]
ROWS = [{"input_ids": [0, 5, 6, 7], "attention_mask": [1, 1, 1, 1]}, {"input_ids": [0, 9]}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def written(tmp_path_factory, llama, text_file) -> Path:
    """A set that the model wrote, of samples that differ in length."""
    place = tmp_path_factory.mktemp("written") / "set"
    generation = {"prefixes": str(text_file), "temperature": 0.9}
    calibration = {"samples": 7, "length": 20, "packing": "whole", "generation": generation}
    generate(Recipe.model_validate({"model": str(llama), "calibration": calibration, "seed": 3}), place)
    lines = (place / "samples.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for number, entry in enumerate(entries):  # of different length, whatever the model wrote
        entry["token_ids"] = entry["token_ids"][: 20 - number]
        entry["mean_logprob"] = -1 / (number + 3) if number else None
    (place / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["set_digest"] = _digest(place)
    manifest["tokens"] = sum(len(entry["token_ids"]) for entry in entries)
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def _digest(folder: Path) -> str:
    from secateur.calibration.sample import CalibrationSet

    return CalibrationSet(tuple(samples_in(folder))).digest


def samples_in(folder: Path) -> list[Sample]:
    return read_samples(folder / "samples.jsonl")


def load(place: Path, name: str) -> datasets.Dataset:
    return datasets.load_from_disk(place) if name == "hf" else datasets.load_dataset(str(place), split="train")


@pytest.mark.parametrize("name", IDS)
def test_a_set_comes_back_as_it_went(written, llama, tmp_path, name):
    done = export_set(written, tmp_path / "out", name)
    before = samples_in(written)
    assert (done.samples, done.tokens, done.padding) == (7, sum(len(s.token_ids) for s in before), 0)
    result = import_set(tmp_path / "out", str(llama), tmp_path / "back")
    assert samples_in(result.folder) == before
    assert {sample.finish for sample in before} <= {"length", "eos"}
    assert any(sample.prompt_tokens for sample in before)
    assert result.manifest["set_digest"] == (read_manifest(written) or {})["set_digest"]
    assert result.manifest["account"] == {"rows_read": 7, "padding_removed": 0}


@pytest.mark.parametrize("name", IDS)
def test_datasets_loads_what_was_exported(written, tmp_path, name):
    export_set(written, tmp_path / "out", name)
    found = load(tmp_path / "out", name)
    assert found["input_ids"][:] == [list(sample.token_ids) for sample in samples_in(written)]
    assert all(
        set(mask) == {1} and len(mask) == len(ids)
        for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)
    )
    assert found["mean_logprob"][0] is None
    assert found["mean_logprob"][1:] == [sample.mean_logprob for sample in samples_in(written)[1:]]
    texts = [json.loads(line)["text"] for line in (written / "samples.jsonl").read_text().splitlines()]
    assert found["text"][:] == texts
    assert {"prompt_tokens", "finish", "origin"} <= set(found.column_names)


@pytest.mark.parametrize(("name", "suffix"), [("parquet", ".parquet"), ("jsonl", ".jsonl"), ("jsonl.gz", ".jsonl.gz")])
def test_a_place_named_as_a_format_is_one_file(written, llama, tmp_path, name, suffix):
    place = tmp_path / f"set{suffix}"
    assert export_set(written, place).format == name
    assert place.is_file()
    assert list(tmp_path.iterdir()) == [place]
    assert samples_in(import_set(place, str(llama), tmp_path / "back").folder) == samples_in(written)


def test_padding_goes_and_comes_off_again(written, llama, tmp_path):
    done = export_set(written, tmp_path / "out", "hf", pad=True)
    before = samples_in(written)
    longest = max(len(sample.token_ids) for sample in before)
    assert done.padding == longest * 7 - done.tokens > 0
    found = datasets.load_from_disk(tmp_path / "out").with_format("torch")
    assert tuple(found[:]["input_ids"].shape) == (7, longest)  # rectangular
    for row, sample in zip(found, before, strict=True):
        size = len(sample.token_ids)
        assert row["attention_mask"].tolist() == [1] * size + [0] * (longest - size)
        assert row["input_ids"][size:].tolist() == [2] * (longest - size)  # the tokenizer's padding token
    result = import_set(tmp_path / "out", str(llama), tmp_path / "back")
    assert samples_in(result.folder) == before
    assert result.manifest["account"]["padding_removed"] == done.padding


def test_padding_takes_the_end_token_where_there_is_no_other(written, llama, tmp_path):
    model = shutil.copytree(llama, tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    export_set(written, tmp_path / "out", "jsonl", pad=True, model=str(model))
    assert {row["input_ids"][-1] for row in load(tmp_path / "out", "jsonl") if not row["attention_mask"][-1]} == {1}
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    with pytest.raises(UsageError, match="nothing to pad with"):
        export_set(written, tmp_path / "again", "jsonl", pad=True, model=str(model))


def test_text_is_plain_and_parted_by_blank_lines(written, tmp_path):
    export_set(written, tmp_path / "set.txt")
    ids = [list(sample.token_ids) for sample in samples_in(written)]
    text = (tmp_path / "set.txt").read_text()
    assert "<s>" not in text
    assert "<s>" in tiny_tokenizer().decode(ids[0])
    assert (
        text == "\n\n".join(t.strip("\n") for t in tiny_tokenizer().batch_decode(ids, skip_special_tokens=True)) + "\n"
    )
    with pytest.raises(UsageError, match="holds no token ids, so there is nothing to pad"):
        export_set(written, tmp_path / "other", "text", pad=True)


def test_the_same_set_gives_the_same_compressed_bytes(written, tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        export_set(written, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("propagation", ["block", "linear"])
def test_an_imported_set_prunes_as_the_one_it_was(written, llama, tmp_path, capsys, propagation):
    export_set(written, tmp_path / "set.parquet")
    assert main(["import", str(tmp_path / "set.parquet"), "--model", str(llama), "--out", str(tmp_path / "back")]) == 0
    assert "7 of up to 20 tokens" in capsys.readouterr().out
    weights = []
    for number, folder in enumerate((written, tmp_path / "back")):
        words = [
            "prune",
            llama,
            "--calibration",
            folder,
            "--out",
            tmp_path / f"pruned{number}",
            "--store",
            tmp_path / "s",
        ]
        words += ["--set", f"pruning.propagation={propagation}", "--set", "evaluation.enabled=false", "-q"]
        assert main([*map(str, words)]) == 0
        weights.append((tmp_path / f"pruned{number}" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != (llama / "model.safetensors").read_bytes()


def test_importing_again_makes_nothing_new_and_other_data_is_refused(llama, tmp_path):
    first = import_set(ROWS, str(llama), store=tmp_path / "s")
    assert first.folder.parent == tmp_path / "s" / "calibration"
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    assert import_set(ROWS, str(llama), store=tmp_path / "s").folder == first.folder
    assert (first.folder / "manifest.json").stat().st_mtime_ns == before
    assert import_set(ROWS[:1], str(llama), store=tmp_path / "s").folder != first.folder
    with pytest.raises(StoreError, match="holds the result of another run"):
        import_set(ROWS[:1], str(llama), first.folder)


def _as_file(tmp_path: Path, kind: str) -> Path:
    """The same two samples, as programs of all kinds keep them."""
    one, two = torch.tensor([[0, 5, 6, 7]]), torch.tensor([[0, 9]])
    padded, mask = torch.tensor([[0, 5, 6, 7], [2, 2, 0, 9]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    place = tmp_path / kind
    match kind:
        case "rows.parquet":
            parquet.write_table(pyarrow.Table.from_pylist([{"other": "x", **row} for row in ROWS]), place)
        case "rows.jsonl":
            place.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
        case "samples.jsonl":
            place.write_text("".join(json.dumps({"token_ids": row["input_ids"]}) + "\n" for row in ROWS))
        case "rows.jsonl.gz":
            place.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
        case "list.json":
            place.write_text(json.dumps(ROWS))
        case "batch.json":
            place.write_text(json.dumps({"input_ids": padded.tolist(), "attention_mask": mask.tolist()}))
        case "disk":
            datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in ROWS]).save_to_disk(place)
        case "splits":
            one_split = datasets.Dataset.from_dict({"input_ids": padded.tolist(), "attention_mask": mask.tolist()})
            datasets.DatasetDict({"train": one_split}).save_to_disk(place)
        case "folder":
            place.mkdir()
            for number, row in enumerate(ROWS):
                (place / f"part{number}.jsonl").write_text(json.dumps(row) + "\n")
            (place / "settings.json").write_text("{}")
        case _:
            found = {
                "matrix.pt": torch.tensor([[0, 5, 6, 7], [0, 9, 9, 9]])[:, :4],
                "list.pt": [one, two],
                "flat.pth": [one[0], two[0]],
                "pairs.pt": [(one, torch.full_like(one, -100)), (two, two)],
                "dicts.pt": [{"input_ids": one, "attention_mask": torch.ones_like(one)}, {"input_ids": two[0]}],
                "batch.pt": {"input_ids": padded.int(), "attention_mask": mask.bool()},
            }[kind]
            torch.save(found, place)
    return place


@pytest.mark.parametrize(
    "kind",
    [
        *("rows.parquet", "rows.jsonl", "samples.jsonl", "rows.jsonl.gz", "list.json", "batch.json", "disk", "splits"),
        *("folder", "matrix.pt", "list.pt", "flat.pth", "pairs.pt", "dicts.pt", "batch.pt"),
    ],
)
def test_data_from_elsewhere(llama, tmp_path, kind):
    result = import_set(_as_file(tmp_path, kind), str(llama), tmp_path / "set")
    second = (0, 9, 9, 9) if kind == "matrix.pt" else (0, 9)
    assert [sample.token_ids for sample in samples_in(result.folder)] == [(0, 5, 6, 7), second]
    assert {(sample.finish, sample.prompt_tokens) for sample in samples_in(result.folder)} == {("window", 0)}
    assert existing_set(str(result.folder))
    check_set(result.folder, resolve_model(str(llama)))
    assert result.manifest["account"]["padding_removed"] == (2 if kind in ("batch.json", "splits", "batch.pt") else 0)
    assert "nothing is known of how they were made" in (result.folder / "README.md").read_text()


def test_rows_in_memory_may_be_tensors_or_a_data_set(llama, tmp_path):
    tensors = [{"input_ids": torch.tensor([row["input_ids"]])} for row in ROWS]
    for number, rows in enumerate((ROWS, tensors, datasets.Dataset.from_list(ROWS))):
        result = import_set(rows, str(llama), tmp_path / str(number))
        assert [sample.token_ids for sample in samples_in(result.folder)] == [(0, 5, 6, 7), (0, 9)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"ids": [1]}, r"Row 2 has no input_ids \(found ids\)"),
        ({"text": "a fox"}, "has text and no input_ids: text becomes calibration data as it is"),
        ({"input_ids": []}, "Row 2 has no tokens"),
        ({"input_ids": [3], "attention_mask": [0]}, "has no tokens that its attention_mask shows"),
        (
            {"input_ids": [3, VOCABULARY]},
            f"holds the token {VOCABULARY}, but .*llama.* has the tokens 0 to {VOCABULARY - 1}",
        ),
        ({"input_ids": [-1]}, "holds the token -1"),
        ({"input_ids": [3.0]}, "not a list of whole numbers"),
        ({"input_ids": [True]}, "not a list of whole numbers"),
        ({"input_ids": "ab"}, "not a list of whole numbers"),
        ({"input_ids": [3, 4], "attention_mask": [1]}, "has 2 input_ids but 1 values in its attention_mask"),
        ({"input_ids": [[3], [4]], "attention_mask": [[1]]}, "2 lists of input_ids, but 1 of attention_mask"),
        ({"input_ids": [3, 4], "attention_mask": [1, 2]}, "not a list of 0 and 1"),
        ({"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}, "hides tokens between others"),
        ({"input_ids": [3] * 65}, "has 65 tokens, but .* was made for 64 positions"),
        ({"input_ids": [3], "prompt_tokens": 2}, "1 tokens, of which prompt_tokens says 2"),
        ({"input_ids": [3], "finish": "stop"}, "has the finish 'stop'; known: length, eos, window"),
        ({"input_ids": [3], "mean_logprob": float("nan")}, "has the mean_logprob nan"),
        ([3, 4], "Row 2 is a list, not an object with input_ids"),
    ],
)
def test_rows_that_cannot_be(llama, tmp_path, row, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        import_set([ROWS[0], row], str(llama), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def _bad(tmp_path: Path, kind: str) -> Path:
    place = tmp_path / kind
    match kind:
        case "nothing":
            pass
        case "folder":
            place.mkdir()
            (place / "config.json").write_text("{}")
        case "mixed":
            place.mkdir()
            (place / "a.jsonl").write_text("{}")
            (place / "a.parquet").write_text("")
        case "two":
            rows = datasets.Dataset.from_list([{"input_ids": [1]}])
            datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(place)
        case "broken":
            place.mkdir()
            (place / "state.json").write_text("{}")
        case "code.pt":
            torch.save([Path("x")], place)
        case "odd.pt":
            torch.save(["x"], place)
        case "packed.jsonl.gz":
            place.write_bytes(gzip.compress(b'{"input_ids": [1]}')[:-9])
        case "half.jsonl":
            place.write_text('{"input_ids": [1]}\n{"input_ids')
        case "latin.jsonl":
            place.write_bytes(b'{"input_ids": [1], "text": "\xe4"}')
        case _:
            place.write_text("")
    return place


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nothing", "no file or folder"),
        ("folder", "no data set that datasets saved, and has no parquet or jsonl file"),
        ("mixed", r"data in several formats: a\.jsonl \(jsonl\), a\.parquet \(parquet\)"),
        ("two", "holds the splits train, test; give the folder of the one"),
        ("broken", "not a data set folder that datasets can load"),
        ("code.pt", "cannot be loaded without the danger of running what is in it"),
        ("odd.pt", "entry 1, is a str"),
        ("packed.jsonl.gz", "not a whole gzip file"),
        ("half.jsonl", "line 2, is not JSON"),
        ("latin.jsonl", "not UTF-8 text"),
        ("empty.jsonl", "holds no samples"),
        ("empty.json", "is not JSON"),
        ("empty.parquet", "not a parquet file that can be read"),
        ("notes.txt", "holds text, not token ids: .*--calibration"),
        ("rows.csv", "of no kind that can be imported; known: .parquet"),
    ],
)
def test_places_that_hold_no_samples(llama, tmp_path, capsys, kind, sentence):
    words = ["import", _bad(tmp_path, kind), "--model", llama, "--out", tmp_path / "set"]
    capsys.readouterr()  # what datasets prints while saving
    assert main([*map(str, words)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert re.search(sentence, printed), printed
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_exported(written, llama, tmp_path, capsys):
    def refused(*arguments: object, **options: object) -> str:
        with pytest.raises(SecateurError) as caught:
            export_set(*arguments, **options)  # type: ignore[arg-type]
        return str(caught.value)

    assert "there is no such folder" in refused(tmp_path / "none", tmp_path / "out")
    assert "not a finished calibration set that Secateur made" in refused(llama, tmp_path / "out")
    assert "There is no format named 'parket'; did you mean 'parquet'?" in refused(written, tmp_path / "out", "parket")
    assert "is only read; write hf, parquet, jsonl, jsonl.gz, text" in refused(written, tmp_path / "out", "tensors")
    assert "is named as parquet, but the format jsonl" in refused(written, tmp_path / "a.parquet", "jsonl")
    for place in (tmp_path / "full", tmp_path / "full.jsonl"):
        place.mkdir() if place.suffix == "" else None
        target = place / "x" if place.is_dir() else place
        target.write_text("mine")
        assert "exists already; nothing is overwritten" in refused(written, place)
        assert target.read_text() == "mine"
    assert main(["export", str(llama), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "full.jsonl"]  # nothing half-made is left


def test_a_set_is_not_imported_over(written, llama, tmp_path):
    with pytest.raises(UsageError, match="is a calibration set already: give it to prune"):
        import_set(written, str(llama), tmp_path / "set")


def test_a_failing_disk_leaves_nothing(written, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FORMATS.load("parquet"), "write", fail)
    with pytest.raises(StoreError, match=r"no space left on device\. Nothing was left there"):
        export_set(written, tmp_path / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_may_be_elsewhere(written, llama, tmp_path):
    moved = shutil.copytree(written, tmp_path / "set")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["model"]["name"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    export_set(moved, tmp_path / "out", "parquet")  # needs none
    with pytest.raises(ModelError, match="name its model with --model"):
        export_set(moved, tmp_path / "set.txt")
    export_set(moved, tmp_path / "set.txt", model=str(llama))


def test_the_card_says_what_the_set_is_and_how_to_make_it_again(llama, text_file, tmp_path, monkeypatch):
    parts = [{"source": "self", "weight": 2.0}, {"source": str(text_file), "weight": 1.0}]
    spec = {"samples": 6, "length": 16, "source": "mixture", "mixture": parts, "filters": [{"name": "perplexity"}]}
    spec["generation"] = {"prefixes": str(text_file), "temperature": 1.1}
    made = generate(Recipe.model_validate({"model": str(llama), "calibration": spec, "seed": 5}), tmp_path / "set")
    export_set(made.folder, tmp_path / "out", "parquet")
    card = (tmp_path / "out" / "README.md").read_text()
    shared = card + (tmp_path / "out" / "provenance.json").read_text()
    assert str(tmp_path.parent) not in shared  # nobody else's business
    assert str(llama) not in shared
    assert made.manifest["set_digest"] in card
    assert '"temperature": 1.1' in card
    dropped = (made.folder / "dropped.jsonl").read_text().splitlines()
    reason = json.loads(dropped[0])["reason"]
    assert f"| {len(dropped)} | `{reason}` |" in card
    assert f"`{llama.name}` wrote is under the terms of its licence" in card
    assert "made by | `secateur" in card

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(card.split("```yaml\n")[1].split("```")[0])
    monkeypatch.chdir(text_file.parent)  # where the shared names mean something
    again = load_recipe(str(recipe), overrides={"model": str(llama)})
    planned = plan_calibration(again).spec
    for key, value in made.manifest["spec"].items():
        if key not in ("mixture", "generation"):  # those name the file by its path
            assert planned[key] == value, key
    assert planned["generation"] | {"prefixes": None} == made.manifest["spec"]["generation"] | {"prefixes": None}
    assert [part["weight"] for part in planned["mixture"]] == [2.0, 1.0]


def test_what_is_known_of_a_set_goes_with_it(written, llama, tmp_path):
    export_set(written, tmp_path / "one", "parquet")
    imported = import_set(tmp_path / "one", str(llama), tmp_path / "back")
    assert imported.manifest["imported"]["made_by"]["seed"] == 3
    assert "wrote itself" in set_card(imported.folder)
    assert "imported from | `one`" in set_card(imported.folder)
    export_set(imported.folder, tmp_path / "two", "hf")
    first, second = [(tmp_path / name / "provenance.json").read_text() for name in ("one", "two")]
    assert first == second


def test_another_model_than_it_was_made_for_is_told(written, llama, tmp_path, capsys):
    export_set(written, tmp_path / "one", "jsonl")
    for model, told in ((llama, False), ("reference", True)):
        words = ["import", tmp_path / "one", "--model", model, "--out", tmp_path / f"back-{told}"]
        assert main([*map(str, words)]) == 0
        assert (f"made for {llama.name}, another model than" in capsys.readouterr().err) == told


def test_what_was_known_of_other_ids_stays_behind(written, llama, tmp_path, capsys):
    export_set(written, tmp_path / "one", "jsonl")
    data = tmp_path / "one" / "data.jsonl"
    data.write_text("\n".join(data.read_text().splitlines()[:3]))
    words = ["import", tmp_path / "one", "--model", llama, "--out", tmp_path / "back", "--json"]
    assert main([*map(str, words)]) == 0
    printed = capsys.readouterr()
    assert "describes other token ids than those beside it" in printed.err
    manifest = json.loads(printed.out)["manifest"]
    assert manifest["imported"]["made_by"] is None
    assert manifest["samples"] == 3


@pytest.mark.parametrize("change", ["[]", "{}", '{"spec": {"length": "x"}}', "no JSON"])
def test_a_provenance_that_others_wrote_is_not_believed(written, llama, tmp_path, capsys, change):
    export_set(written, tmp_path / "one", "jsonl")
    (tmp_path / "one" / "provenance.json").write_text(change)
    assert main(["import", str(tmp_path / "one"), "--model", str(llama), "--out", str(tmp_path / "back")]) == 0
    assert "is not what Secateur writes; it is left aside" in capsys.readouterr().err


def test_a_card_cannot_be_broken_out_of(written, llama, tmp_path):
    export_set(written, tmp_path / "one", "jsonl")
    known = json.loads((tmp_path / "one" / "provenance.json").read_text())
    known["source"] = known["model"]["name"] = "a` <script>\n\n```\n# b | c"
    known["account"] = {"<b>|": {"`": "<i>"}}
    known["dropped"] = {"`\n\n<u>": 3}
    (tmp_path / "one" / "provenance.json").write_text(json.dumps(known))
    card = (import_set(tmp_path / "one", str(llama), tmp_path / "back").folder / "README.md").read_text()
    assert "\n# b" not in card
    prose = re.sub(r"```yaml.*?```|`[^`\n]*`", "", card.partition("## Samples")[0], flags=re.DOTALL)
    assert not re.search(r"<[a-z]", prose)
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows)


def test_the_command_says_what_it_wrote(written, tmp_path, capsys):
    assert main(["export", str(written), "--format", "parquet", "--out", str(tmp_path / "out"), "--pad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["samples"]) == ("parquet", 7)
    assert found["padding"] > 0
    assert main(["export", str(written), "--out", str(tmp_path / "plain")]) == 0
    assert "(hf)" in capsys.readouterr().out
