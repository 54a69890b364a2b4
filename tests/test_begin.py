"""The begin token in evaluation: where it stands, that no text is lost, that the numbers are lm-eval's, what is said of it."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, processors

from conftest import CONFIGS, prune_folder, save_model, tiny_tokenizer
from secateur.cli.main import main
from secateur.errors import UsageError
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.perplexity_task import Alpaca, WikiText2
from secateur.evaluation.protocol import parse_protocol, said, tokenise
from secateur.evaluation.scorer import Scorer
from secateur.models.begin import begin_token, tokens_before
from secateur.models.loading import load_model
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.recipe import Recipe

TEXTS = ["the quick brown fox " * 12, "lazy dog", "jumps over the lazy dog " * 40]
BEGIN = 0


def tokenizer_with(template: str | None, **named: str | None) -> transformers.PreTrainedTokenizerFast:
    """The tests' tokenizer, but for what it puts around a text (``$A``), and the special tokens that it names."""
    inner = tiny_tokenizer().backend_tokenizer
    special = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>", "<pad>")]
    inner.post_processor = processors.TemplateProcessing(single=template or "$A", special_tokens=special)
    if template is None:
        inner.post_processor = None
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | named
    given = {name: token for name, token in names.items() if token}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **given)


ADDS, NONE, NAMELESS = tokenizer_with("<s> $A"), tokenizer_with(None), tokenizer_with(None, bos_token=None)


@pytest.mark.parametrize(
    ("tokenizer", "before"),
    [
        (ADDS, (0,)),
        (NONE, ()),  # it names a begin token that it does not use: Qwen's, SmolLM2's
        (tokenizer_with("<s> $A", bos_token=None), (0,)),  # and the other way round
        (tokenizer_with("<s> $A </s>"), (0,)),
        (tokenizer_with("$A </s>"), ()),
        (tokenizer_with("</s> $A"), (1,)),  # OPT's
        (tokenizer_with("<pad> <s> $A"), (2, 0)),  # GLM's
    ],
)
def test_what_a_tokenizer_puts_before_text_is_seen_in_what_it_does(tokenizer, before):
    assert tokens_before(tokenizer) == before
    assert begin_token(tokenizer) == (before[0] if len(before) == 1 else None)


def test_a_tokenizer_that_knows_nothing_of_the_probe_still_shows_its_begin_token():
    inner = Tokenizer(models.BPE({"<s>": 0, "f": 1}, []))  # what is not in it is left out
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert begin_token(transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")) == 0


def text_of(tokenizer) -> list[int]:
    return tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("window", [2, 7, 16, 64])
def test_every_window_begins_and_no_text_is_lost(window):
    protocol = parse_protocol(f"concat-{window}")
    found = tokenise(TEXTS, ADDS, protocol, 64, begin=protocol.begin("auto", ADDS)).sequences
    assert {len(sequence) for sequence in found} == {
        window
    }  # as many positions as were asked for, begin token included
    assert all(sequence[0] == BEGIN for sequence in found)
    text = [token for sequence in found for token in sequence[1:]]
    assert text == text_of(ADDS)[: len(text)]
    assert len(text_of(ADDS)) - len(text) < window - 1  # only a tail that fills no window


@pytest.mark.parametrize("choice", ["auto", "every", "first", "none"])
def test_each_choice_is_the_program_it_says(choice, llama):
    model, protocol, ids = load_model(llama), parse_protocol("concat-16"), text_of(ADDS)
    size, rows = (15, [[BEGIN]]) if choice in ("auto", "every") else (16, [[]])
    stream = [BEGIN, *ids] if choice == "first" else ids
    rows = [rows[0] + stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    losses = []
    for row in rows:
        with torch.inference_mode():
            logits = model(torch.tensor([row])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:])).item())  # the first is no target
    text = tokenise(TEXTS, ADDS, protocol, 64, begin=protocol.begin(choice, ADDS))
    found = perplexity(model, text, protocol)
    assert found.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found.bos == ("every" if choice == "auto" else choice)
    assert found.tokens == 16 * len(rows)


def test_a_text_that_begins_with_the_token_in_writing_has_one_begin_token():
    protocol = parse_protocol("concat-4")
    found = tokenise(["<s>the quick brown fox"], ADDS, protocol, begin=protocol.begin("every", ADDS)).sequences
    assert found == tokenise(["the quick brown fox"], ADDS, protocol, begin=protocol.begin("every", ADDS)).sequences


@pytest.mark.parametrize(
    ("tokenizer", "protocol", "choice", "place", "same"),
    [
        (ADDS, "concat-8", "auto", "every", False),
        (ADDS, "concat-8", "first", "first", True),
        (ADDS, "concat-8", "none", "none", False),
        (ADDS, "document", "auto", "every", True),
        (ADDS, "document", "first", "every", True),
        (ADDS, "document", "none", "none", False),
        (ADDS, "wikitext2", "auto", "first", True),
        (ADDS, "wikitext2", "every", "every", False),
        (ADDS, "alpaca", "auto", "every", True),
        (NONE, "concat-8", "auto", "none", True),
        (NONE, "concat-8", "first", "none", True),
        (NONE, "concat-8", "every", "every", False),
        (NONE, "document", "auto", "none", True),
        (NONE, "document", "every", "every", False),
        (NAMELESS, "concat-8", "auto", "none", True),
        (tokenizer_with("<pad> <s> $A"), "concat-8", "auto", "first", True),
    ],
)
def test_where_it_stands_and_when_the_numbers_are_those_of_before(tokenizer, protocol, choice, place, same):
    protocol = parse_protocol(protocol)
    begin = protocol.begin(choice, tokenizer)
    assert begin.place == place
    small = protocol if protocol.window in (None, 8) else parse_protocol("concat-8")
    found = tokenise(TEXTS, tokenizer, small, 64, begin=begin).sequences
    whole = tokenizer("\n\n".join(TEXTS))["input_ids"]
    before = tuple(tuple(whole[start : start + 8]) for start in range(0, len(whole) - 7, 8))
    if protocol.window is None:
        before = tuple(tuple(tokenizer(text)["input_ids"][:64]) for text in TEXTS)
    assert (found == before) == same
    if place == "every":
        assert all(sequence[0] == BEGIN != sequence[1] for sequence in found)


def test_a_published_protocol_says_where_it_differs_and_yields_to_what_is_asked(llama, text_file):
    model = load_model(llama)
    found = WikiText2(text=str(text_file)).score(Scorer(model, ADDS, 64)).facts
    assert found["bos"] == "first"
    assert "evaluation.bos=every has one before each" in found["note"]
    for tokenizer, bos in ((ADDS, "every"), (ADDS, "none"), (ADDS, "first"), (NONE, "auto")):
        asked = WikiText2(text=str(text_file)).score(Scorer(model, tokenizer, 64, bos=bos))
        assert "note" not in asked.facts
        protocol = parse_protocol("concat-64")
        texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
        expected = tokenise(texts, tokenizer, protocol, 64, begin=protocol.begin(bos, tokenizer))
        assert asked.metrics["ppl"] == pytest.approx(perplexity(model, expected, protocol).value, rel=1e-6)
    assert "note" not in Alpaca(text=str(text_file)).score(Scorer(model, ADDS, 64)).facts


def asked_of(model, text_file, **evaluation):
    given = {"text": str(text_file), "protocol": "concat-16"} | evaluation
    return Recipe.model_validate({"model": str(model), "evaluation": given})


def test_the_digest_changes_when_and_only_when_numbers_can(llama, text_file, tmp_path):
    plain = save_model(CONFIGS["llama"](), tmp_path / "plain")
    NONE.save_pretrained(plain)

    def spec(model, **evaluation):
        return plan_evaluation(asked_of(model, text_file, **evaluation), resolve_model(str(model))).spec

    assert spec(llama)["bos"] == "every"
    assert spec(llama, bos="every") == spec(llama) != spec(llama, bos="none")
    as_before = [
        (llama, {"bos": "first"}),
        (llama, {"protocol": "document"}),
        (llama, {"protocol": "document", "bos": "every"}),
        (plain, {}),
        (plain, {"bos": "first"}),
        (plain, {"bos": "none"}),
        (plain, {"tasks": ["next-line"]}),
    ]
    for model, evaluation in as_before:
        assert not {"bos", "tasks_bos"} & set(spec(model, **evaluation)), evaluation
    assert spec(plain, bos="every")["bos"] == "every"
    tasks = [spec(llama, tasks=["wikitext2"], bos=bos) for bos in ("auto", "every", "none", "first")]
    assert len({json.dumps(one, sort_keys=True) for one in tasks}) == 4


def test_the_bundled_model_is_measured_as_it_was_trained():
    """On files joined and cut anywhere: its published figures stand."""
    model = resolve_model("reference")
    stage = plan_evaluation(Recipe.model_validate({"evaluation": {"protocol": "concat-512"}}), model)
    assert (stage.begin.place, stage.begin.note) == ("first", "")
    assert "bos" not in stage.spec
    asked = Recipe.model_validate({"evaluation": {"protocol": "concat-512", "bos": "every"}})
    assert plan_evaluation(asked, model).begin.place == "every"


def requests(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_documents_are_lm_eval_s_rolling_log_likelihood(name, tmp_path):
    """With a begin token: where lm-eval adds none beside its prefix token, which is the same. Without: where its prefix
    token is the text's first, which has nothing before it and is no target."""
    hflm = pytest.importorskip("lm_eval.models.huggingface").HFLM
    model, protocol = load_model(save_model(CONFIGS[name](), tmp_path / name)), parse_protocol("document")
    texts = ["the quick brown fox " * 4, "lazy dog", "jumps over the lazy dog"]
    plain = {"pretrained": model, "tokenizer": NONE, "batch_size": 1, "max_length": 64, "device": "cpu"}
    theirs = hflm(**plain | {"tokenizer": ADDS}, add_bos_token=False)
    rolled = theirs.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    for tokenizer, choice in ((ADDS, "auto"), (ADDS, "every"), (NONE, "every")):
        for text, expected in zip(texts, rolled, strict=True):
            own = tokenise([text], tokenizer, protocol, 64, begin=protocol.begin(choice, tokenizer))
            tokens = len(own.sequences[0]) - 1
            assert -tokens * math.log(perplexity(model, own, protocol).value) == pytest.approx(expected, rel=1e-4)
    for tokenizer, choice in ((ADDS, "none"), (NONE, "auto")):
        for text in texts:
            own = tokenise([text], tokenizer, protocol, 64, begin=protocol.begin(choice, tokenizer))
            first, *rest = own.sequences[0]
            other = hflm(**plain, add_bos_token=False, prefix_token_id=first)
            other.tok_encode = lambda string, rest=rest: rest  # the rest of the text may have other tokens by itself
            (expected,) = other.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
            assert -len(rest) * math.log(perplexity(model, own, protocol).value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("bos", "add"), [("auto", None), ("first", None), ("every", True), ("none", False)])
@pytest.mark.parametrize("adds", [True, False])
def test_tasks_have_lm_eval_s_add_bos_token(llama, bos, add, adds, tmp_path):
    hflm = pytest.importorskip("lm_eval.models.huggingface").HFLM
    from secateur.evaluation.harness_run import HarnessModel

    model, tokenizer = load_model(llama), ADDS if adds else NONE
    ours = HarnessModel(Scorer(model, tokenizer, 64, bos=bos))
    assert ours.add_bos_token is add
    # Where the tokenizer adds none by itself, lm-eval's flag reaches only those that it loads anew: the other does then.
    same = ADDS if bos == "every" else tokenizer
    theirs = hflm(pretrained=model, tokenizer=same, batch_size=2, max_length=64, device="cpu", add_bos_token=add)
    pairs = requests(("the quick", " brown fox"), ("the quick ", "dog"), ("", "lazy dog"), ("<s>the", " lazy"))
    found, expected = ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    texts = requests(("the quick brown fox",), (" ".join(map(str, range(90))),))
    rolled = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(rolled, rel=1e-4)
    until = {"until": [], "max_gen_toks": 6, "do_sample": False}
    asked = requests(("the quick", until))
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)
    assert {ours.scorer.begun("the fox")[0] == BEGIN} == {bos == "every" or (adds and bos != "none")}


# What is said of it


@pytest.fixture
def half(llama, tmp_path):
    prune_folder(llama, tmp_path / "half", "magnitude", "unstructured", 0.5)
    return tmp_path / "half"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "(concat-16, begin token in every window, "),
        (["evaluation.bos=first"], "(concat-16, begin token in the first window only, "),
        (["evaluation.bos=none"], "(concat-16, no begin token, "),
        (["evaluation.protocol=document"], "(document, begin token in every document, "),
    ],
)
def test_the_command_says_where_it_stood(settings, words, half, llama, text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECATEUR_STORE", str(tmp_path / "store"))
    given = [f"evaluation.text={text_file}", "evaluation.protocol=concat-16", *settings]
    asked = ["evaluate", str(half), "--against", str(llama), *(part for one in given for part in ("--set", one))]
    assert main([*asked, "--dry-run"]) == 0
    assert words[1:].rstrip(", ") in capsys.readouterr().out
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert words in printed
    assert main([*asked, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert f"({said(scores['scores']['perplexity'])}, " == words
    assert scores["scores"]["perplexity"]["bos"] == scores["dense_scores"]["perplexity"]["bos"]


def test_the_model_card_says_it_with_the_note_of_a_published_protocol(llama, text_file, tmp_path, capsys):
    config = CONFIGS["llama"]()
    config.max_position_embeddings = 2048
    model = save_model(config, tmp_path / "long")
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog jumps over the quick brown fox " * 240)
    out = tmp_path / "out"
    words = ["prune", str(model), "--method", "magnitude", "--sparsity", "0.5", "--out", str(out)]
    words += [
        "--set",
        f"evaluation.text={text}",
        "--set",
        "evaluation.protocol=wikitext2",
        "--store",
        str(tmp_path / "store"),
    ]
    assert main(words) == 0
    note = "As in the published programs, the begin token stands before the first window only"
    assert f"note           {note}" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "Perplexity by `wikitext2`, begin token in the first window only, over " in card
    assert note in card


def test_scores_from_before_it_was_recorded_can_still_be_read():
    assert said({"value": 6.0, "protocol": "concat-512", "sequences": 2, "tokens": 1024}) == "concat-512"


# What cannot be


def test_what_cannot_be_had_is_said(llama, text_file, tmp_path, capsys):
    def run(model, *settings):
        given = [f"evaluation.text={text_file}", "evaluation.protocol=concat-16", *settings]
        words = ["evaluate", str(model), "--store", str(tmp_path / "store")]
        code = main([*words, *(part for one in given for part in ("--set", one))])
        return code, capsys.readouterr().err

    nameless = save_model(CONFIGS["llama"](), tmp_path / "nameless")
    NAMELESS.save_pretrained(nameless)
    code, error = run(nameless, "evaluation.bos=every")
    assert code == 2
    assert "evaluation.bos=every was asked for, but the tokenizer has no begin token (bos_token)" in error
    assert run(nameless)[0] == 0
    code, error = run(llama, "evaluation.bos=always")
    assert code == 2
    assert "evaluation.bos" in error
    assert "'auto', 'every', 'first' or 'none'" in error


def test_a_tokenizer_of_another_model_ends_in_a_sentence(text_file, tmp_path, capsys):
    config = CONFIGS["llama"]()
    config.vocab_size = 60
    model = save_model(config, tmp_path / "small")
    words = ["evaluate", str(model), "--set", f"evaluation.text={text_file}", "--set", "evaluation.protocol=concat-16"]
    assert main([*words, "--store", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"makes the token \d+ of the text '.*text.jsonl', but the model has only 60 tokens", error), error
    high = tokenizer_with("<s> $A")
    high.add_special_tokens({"bos_token": "<begin>"})
    high.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", high.bos_token_id)]
    )
    high.save_pretrained(model)
    assert main([*words, "--store", str(tmp_path / "store")]) == 2
    assert f"The begin token of the tokenizer of {model} is {high.bos_token_id}, but" in capsys.readouterr().err


def test_settle_refuses_every_without_a_begin_token():
    with pytest.raises(UsageError, match="has no begin token"):
        parse_protocol("concat-8").begin("every", NAMELESS)
