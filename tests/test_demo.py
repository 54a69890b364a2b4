"""secateur demo: the tables of any model, and what is refused before anything is run."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import transformers

from secateur.calibration.sources import python_texts
from secateur.cli import demo
from secateur.cli.demo import Table
from secateur.cli.main import main
from secateur.models.loading import load_tokenizer
from secateur.pipeline.components import resolve_model

SMALL = ["--set", "calibration.samples=4", "--set", "calibration.length=24", "--set", "evaluation.limit=2"]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[it]{% endif %}"


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    """Of installed packages and of the library a few files: reading all of them takes seconds each time."""
    for source in (python_texts.SitePackages, python_texts.StdlibTrain, python_texts.StdlibHeldout):
        found = list(itertools.islice(python_texts.python_files(Path(json.__file__).parent), 5))
        monkeypatch.setattr(source, "texts", lambda self, found=found: iter(found))


@pytest.fixture
def run(tmp_path, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["demo", *map(str, arguments), "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return call


def test_a_table_for_each_pattern(run, llama, tmp_path):
    code, printed, errors = run("--model", llama, *SMALL, "--pattern", "2:4", "--pattern", "unstructured")
    assert code == 0
    assert "note: unstructured: sparsegpt, text it wrote itself" in errors
    first, second = re.findall(r"^Held-out perplexity of (.*):\n\n((?:.+\n)+)", printed, flags=re.MULTILINE)
    assert re.fullmatch(
        r"\S+ \(concat-64, begin token in every window, 128 tokens of English, 128 tokens of Python\), pruned to 2:4",
        first[0],
    )
    assert second[0].endswith("pruned to 50%")
    rows = [line.split("  ")[0] for line in first[1].splitlines()[2:]]
    assert rows == [
        "dense",
        "magnitude, no data",
        "sparsegpt, random tokens",
        "sparsegpt, English prose about Python",
        "sparsegpt, other people's Python",
        "sparsegpt, text it wrote itself",
    ]
    dense = [line for line in printed.splitlines() if line.startswith("dense")]
    assert len(set(dense)) == 1
    assert len(list((tmp_path / "store" / "calibration").iterdir())) == 4  # the second table's data was there
    made = re.findall(r"The model that pruned itself: (\S+)", printed)
    assert "2of4-self" in made[0]
    weight = transformers.AutoModelForCausalLM.from_pretrained(made[0]).model.layers[0].mlp.up_proj.weight
    assert ((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all()
    for name in ("dense model", "model pruned to 2:4", "model pruned to 50%"):
        assert f"The beginning of a sentence as the {name} continues it:\n    {demo.BEGINNING}" in printed


def test_as_json_on_a_text_of_ones_own(run, llama, text_file):
    code, printed, _ = run(
        "--model", llama, *SMALL, "--method", "magnitude", "--json", "--set", f"evaluation.text={text_file}"
    )
    found = json.loads(printed)
    assert code == 0
    assert found["dense"]["tokens"] == 128
    for row in found["rows"]:
        assert row["pattern"] == "2:4"
        assert row["ratio"] == pytest.approx(row["perplexity"] / found["dense"]["value"])
    assert found["continuations"].keys() == {"dense", "pruned"}


def test_a_model_with_a_chat_template_is_asked(llama, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path / "chat")
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    prompt = demo._prompt(resolve_model(str(tmp_path / "chat")))
    assert prompt.text == f"[user]{demo.QUESTION}[it]"
    assert demo.QUESTION not in demo._go_on(prompt, tmp_path / "chat")
    assert demo._prompt(resolve_model(str(llama))).text == demo.BEGINNING
    assert demo._prompt(resolve_model("reference")) == demo.CODE


def test_a_model_that_says_nothing_is_shown_to(capsys):
    demo._print_continuations(demo.CODE, {"dense": "\nx = 1\ny = 2\n", "pruned": ""})
    assert capsys.readouterr().out.splitlines() == [
        "The prompt (two lines) as the dense model continues it:",
        "    x = 1",
        "    y = 2",
        "",
        "The prompt (two lines) as the pruned model continues it:",
        f"    {demo.SILENCE}",
    ]


def test_the_bundled_models_table_stays_as_it_is(capsys):
    table = Table("2:4", {"perplexity": {"value": 5.82, "protocol": "concat-512", "tokens": 32768}})
    table.rows.append(
        {
            "source": "self",
            "what": "sparsegpt, text it wrote itself",
            "perplexity": {"perplexity": 7.24},
            "ratio": {"perplexity": 1.244},
            "sparsity": 0.5,
            "seconds": 52.3,
        }
    )
    demo._print(table, "the bundled model")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Held-out perplexity of the bundled model (concat-512, 32,768 tokens), pruned to 2:4:"
    assert [line.split("  ")[-1].strip() for line in lines[2:3]] == ["seconds"]
    assert lines[5].split() == ["sparsegpt,", "text", "it", "wrote", "itself", "7.24", "1.24", "x", "50.0%", "52"]
    row = demo._facts([table])["rows"][0]
    assert (row["perplexity"], row["ratio"]) == (7.24, 1.244)


def test_its_own_training_files_are_a_row_of_the_bundled_model_alone(run, llama):
    assert "calibrated on its own training files" in run("--dry-run")[1]
    assert "training files" not in run("--model", llama, "--dry-run")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "FOLDER"], "has no config.json, so it is not a Hugging Face model folder"),
        (["--model", "FILE"], "is a file. Give such a folder"),
        (["--model", "MODEL", "--pattern", "2:4", "--pattern", "5:4"], "5:4"),
        (["--model", "MODEL", "--method", "sparsegtp"], "did you mean 'sparsegpt'"),
        (["--model", "MODEL", "--sparsity", "0.7"], "2:4"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(run, llama, text_file, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    names = {"FOLDER": tmp_path / "empty", "FILE": text_file, "MODEL": llama}
    code, printed, errors = run(*(names.get(one, one) for one in arguments))
    assert (code, printed) == (2, "")
    assert said in errors
    assert not (tmp_path / "store").exists()
