"""Filters: one verdict a sample, in order; exact counts; what is planted is found, and what is not is left alone."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ScriptedContext, tiny_tokenizer
from secateur.calibration.filters import FILTERS
from secateur.calibration.filters.base import Filter, Verdict, apply_filters, tally
from secateur.calibration.filters.contamination import ContaminationFilter
from secateur.calibration.filters.duplicates import DuplicatesFilter
from secateur.calibration.filters.language import LanguageFilter
from secateur.calibration.filters.length import LengthFilter
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.calibration.filters.repetition import RepetitionFilter, compression_ratio
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError, RecipeError, UsageError
from secateur.generation.self_generation import Goal
from secateur.journal import Journal
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import make_filters, resolve_model
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter
from test_generation import ScriptedEngine, writer

TOKENIZER = tiny_tokenizer()

GERMAN = (
    "Am Morgen ging der alte Gärtner durch den Garten und schnitt die trockenen Zweige von den Bäumen, "
    "damit sie im Frühling wieder kräftig wachsen können."
)
ENGLISH = (
    "In the morning the old gardener walked through the orchard and cut the dry branches from the trees, "
    "so that they would grow strongly again in the spring."
)
QUESTION = "Which of the gardener's seven tools did he leave behind under the pear tree last week?"
SETTINGS = {"contamination": {"against": ["questions"]}}


def text_sample(text: str) -> Sample:
    return Sample(tuple(TOKENIZER(text)["input_ids"]))


def samples_of(*perplexities: float) -> list[Sample]:
    return [Sample((1, 2, 3, index), mean_logprob=-math.log(value)) for index, value in enumerate(perplexities)]


def context(**options) -> ScriptedContext:
    return ScriptedContext(TOKENIZER, sources={"questions": [QUESTION], "short": ["yes", "the end"]}, **options)


def judged(judge: Filter, *texts: str) -> list[Verdict]:
    return judge.judge([text_sample(text) for text in texts], context())


def kept(verdicts: list[Verdict]) -> list[int]:
    return [index for index, verdict in enumerate(verdicts) if verdict.keep]


def words(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(count))


def mixed() -> list[Sample]:
    texts = [ENGLISH, GERMAN, ENGLISH, "a b c d " * 30, QUESTION, "", words(40), ENGLISH + " Then he slept."]
    return [text_sample(text).scored(-1 - index / 10) for index, text in enumerate(texts)]


@pytest.mark.parametrize("name", FILTERS.entries())
def test_every_filter_judges_each_sample_in_order_and_again_the_same(name):
    samples = mixed()
    judge = FILTERS.load(name)(**SETTINGS.get(name, {}))
    verdicts = judge.judge(samples, context())
    assert len(verdicts) == len(samples)
    assert 0 < len(kept(verdicts)) < len(samples)
    assert all(bool(verdict.reason) != verdict.keep and math.isfinite(verdict.value) for verdict in verdicts)
    assert judge.judge(samples, context()) == verdicts
    assert FILTERS.load(name)(**SETTINGS.get(name, {})).judge(samples, context()) == verdicts
    assert apply_filters([judge], [], context()) == []
    assert FILTERS.load(name).__doc__.splitlines()[0] == FILTERS.entries()[name].summary


def test_a_verdict_says_which_filter_dropped_a_sample_and_the_tally_counts_reasons():
    verdicts = apply_filters([LengthFilter(shortest=5), DuplicatesFilter()], mixed(), context())
    assert [(v.by, v.reason) for v in verdicts if not v.keep] == [
        ("duplicates", "the same as an earlier sample"),
        ("length", "shorter than 5 tokens"),
        ("duplicates", "at least 0.8 similar to an earlier sample"),
    ]
    many = [Verdict(False, 0.0, f"reason {n % 9}", "f") for n in range(20)] + [Verdict(True, 0.0)]
    assert tally(many).startswith("f: 3 reason 0; f: 3 reason 1; f: 2 reason 2; ")
    assert tally(many).endswith("; 6 for other reasons")
    assert tally([Verdict(True, 1.0)]) == ""


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    drop=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.75]),
    side=st.sampled_from(["high", "low", "both"]),
)
def test_the_perplexity_filter_drops_exact_counts_from_its_side(values, drop, side):
    verdicts = PerplexityFilter(drop, side).judge(samples_of(*values), context())
    each = math.floor(len(values) * (drop / 2 if side == "both" else drop) + 1e-9)
    high = [i for i, v in enumerate(verdicts) if "highest" in v.reason]
    low = [i for i, v in enumerate(verdicts) if "lowest" in v.reason]
    assert (len(high), len(low)) == (each * (side != "low"), each * (side != "high"))
    rest = kept(verdicts)
    assert len(rest) == len(values) - len(high) - len(low)
    assert all(values[i] >= values[k] and (values[i] > values[k] or i > k) for i in high for k in rest)
    assert all(values[i] <= values[k] and (values[i] < values[k] or i > k) for i in low for k in rest)


def test_bounds_of_perplexity_come_before_the_share():
    verdicts = PerplexityFilter(0.5, lowest=2, highest=50).judge(samples_of(1.5, 2, 30, 90, 50, 4), context())
    assert kept(verdicts) == [1, 5]
    assert [v.reason for v in verdicts if not v.keep] == [
        "of perplexity below 2",
        "among the 50% of highest perplexity",
        "of perplexity above 50",
        "among the 50% of highest perplexity",
    ]
    alone = PerplexityFilter(0.0, highest=50)
    assert kept(alone.judge(samples_of(3, 60, 50.5), context())) == [0]
    assert (alone.keeps, PerplexityFilter().keeps, PerplexityFilter(0.2, "both").keeps) == (1, 0.8, 0.8)


def test_perplexity_may_be_another_models():
    asked = context(scores={"other": lambda sample: -float(sample.token_ids[-1])})
    verdicts = PerplexityFilter(0.25, model="other").judge(samples_of(9, 3, 2, 1), asked)
    assert kept(verdicts) == [0, 1, 2]
    assert verdicts[1].value == pytest.approx(math.e)


def test_length_counts_tokens_both_ends_included():
    samples = [Sample((5,) * length) for length in (1, 2, 3, 4, 5)]
    assert kept(LengthFilter().judge(samples, context())) == [1, 2, 3, 4]
    verdicts = LengthFilter(2, 4).judge(samples, context())
    assert kept(verdicts) == [1, 2, 3]
    assert [verdict.value for verdict in verdicts] == [1, 2, 3, 4, 5]
    assert (verdicts[0].reason, verdicts[4].reason) == ("shorter than 2 tokens", "longer than 4 tokens")


def test_repetition_flags_loops_and_not_text():
    loop, late = "a b c d " * 40, ENGLISH + " and so on and so on" * 40
    assert kept(judged(RepetitionFilter(), loop, late, ENGLISH, GERMAN, words(200), "ab", "")) == [2, 3, 4, 5, 6]


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(3, 6), max_size=40), n=st.integers(1, 5))
def test_the_share_repeated_is_of_n_grams_that_stood_there_before(ids, n):
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    before = sum(gram in grams[:place] for place, gram in enumerate(grams))
    (verdict,) = RepetitionFilter(n=n, most=0.3).judge([Sample(tuple(ids))], context())
    assert verdict.value == pytest.approx(before / len(grams) if grams else 0)
    assert verdict.keep == (before <= 0.3 * len(grams) + 1e-9)


def test_the_compression_ratio_is_looked_at_when_asked():
    paragraph = words(100)
    thrice = f"{paragraph} {paragraph} {paragraph}"
    assert compression_ratio("") == 0
    assert compression_ratio(thrice) > 2 * compression_ratio(paragraph)
    assert kept(judged(RepetitionFilter(most=1.0), paragraph, thrice)) == [0, 1]
    verdicts = judged(RepetitionFilter(most=1.0, ratio=3.0), paragraph, thrice)
    assert kept(verdicts) == [0]
    assert verdicts[1].value == pytest.approx(compression_ratio(thrice))
    assert verdicts[1].reason == "of a compression ratio above 3"


def planted(share: float, length: int = 300, seed: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two sequences whose sets of 3-grams have about this Jaccard similarity: the second's tail is other tokens."""
    rng = random.Random(seed)
    first = [rng.randrange(10**6) for _ in range(length)]
    common = round(length * 2 * share / (1 + share))
    return tuple(first), (*first[:common], *(rng.randrange(10**6) for _ in range(length - common)))


def test_near_duplicates_are_found_where_planted_and_nowhere_else():
    pairs = [planted(0.93, seed=seed) for seed in range(20)]
    apart = [planted(0.6, seed=100 + seed) for seed in range(20)]
    samples = [Sample(ids) for ids in itertools.chain(*zip(*pairs, strict=True), *zip(*apart, strict=True))]
    verdicts = DuplicatesFilter().judge(samples, context())
    assert kept(verdicts) == [*range(20), *range(40, 80)]
    assert all(0.9 < verdict.value < 0.96 for verdict in verdicts[20:40])
    assert "0.8 similar" in verdicts[20].reason
    assert kept(DuplicatesFilter(similarity=0.5).judge(samples, context())) == [*range(20), *range(40, 60)]
    assert len(kept(DuplicatesFilter(similarity=1.0).judge(samples, context()))) == 80


def test_the_first_of_equal_samples_stays_and_short_ones_are_compared_whole():
    ids = [(), (5,), (5, 6), (5,), (), (5, 6), (6, 5), (5, 6, 7), (5, 6, 7)]
    for similarity in (0.8, 1.0):
        verdicts = DuplicatesFilter(similarity).judge([Sample(one) for one in ids], context())
        assert kept(verdicts) == [0, 1, 2, 6, 7]
        assert all(verdict.value == 1 for verdict in verdicts if not verdict.keep)


def test_later_rounds_of_the_duplicates_filter_agree_with_earlier_ones():
    pairs = [planted(0.9, 60, seed) for seed in range(15)]
    samples = [Sample(ids) for pair in pairs for ids in pair]
    judge = DuplicatesFilter()
    early = judge.judge(samples[:11], context())
    assert judge.judge(samples, context())[:11] == early


def test_german_is_told_from_english():
    verdicts = judged(LanguageFilter(), ENGLISH, GERMAN, "  ", QUESTION)
    assert kept(verdicts) == [0, 3]
    assert (verdicts[1].reason, verdicts[2].reason) == ("in de, not en", "without text")
    assert kept(judged(LanguageFilter(["de", "fr"]), ENGLISH, GERMAN)) == [1]
    assert kept(judged(LanguageFilter(["en", "de"]), ENGLISH, GERMAN)) == [0, 1]
    assert all(0 < verdict.value <= 1 for verdict in verdicts if verdict.keep)


def test_a_confidence_leaves_the_doubtful_out():
    confident = judged(LanguageFilter(), ENGLISH)[0].value
    sure, unsure = LanguageFilter(confidence=confident / 2), LanguageFilter(confidence=min(1.0, confident * 1.01))
    assert judged(sure, ENGLISH)[0].keep
    verdict = judged(unsure, ENGLISH)[0]
    assert not verdict.keep
    assert verdict.reason.startswith("in en, with a confidence below")
    assert judged(LanguageFilter(["sr"]), "\x01\x02")[0].reason == "of no language that can be told"


def test_contamination_sees_through_case_punctuation_and_spacing():
    copied = 'He asked: "WHICH of the\n\ngardener\'s SEVEN tools -- did he leave behind, under the pear tree" and went.'
    other = QUESTION.replace("seven", "eight").replace("leave", "put")
    verdicts = judged(ContaminationFilter(["questions"]), ENGLISH, copied, other)
    assert kept(verdicts) == [0, 2]
    assert verdicts[1].reason == "sharing word n-grams with questions"
    assert [verdict.value for verdict in verdicts] == [0, 3, 0]  # 15 words have three 13-grams
    assert kept(judged(ContaminationFilter(["questions"], most=2), copied)) == []
    assert kept(judged(ContaminationFilter(["questions"], most=3), copied)) == [0]


def test_the_reason_names_the_sources_that_share_words():
    asked = ScriptedContext(TOKENIZER, sources={"a": [ENGLISH], "b": [GERMAN], "c": [GERMAN, ENGLISH]})
    verdicts = ContaminationFilter(["a", "b", "c"]).judge(list(map(text_sample, (ENGLISH, GERMAN, QUESTION))), asked)
    assert [verdict.reason.rpartition("with ")[2] for verdict in verdicts] == ["a and c", "b and c", ""]
    assert verdicts[0].value == len(ENGLISH.split()) - 12  # counted once, though two sources have it


def test_evaluation_texts_shorter_than_n_count_whole_unless_they_are_no_evidence():
    short = "the gardener sold nine of his pear trees"
    asked = ScriptedContext(TOKENIZER, sources={"s": [short, "yes", "the gardener"]})
    samples = [text_sample(text) for text in (f"I heard that {short.upper()}!", "yes, the gardener sold nine", ENGLISH)]
    assert kept(ContaminationFilter(["s"]).judge(samples, asked)) == [1, 2]
    verdicts = ContaminationFilter(["s"], shortest=1).judge(samples, asked)
    assert [verdict.value for verdict in verdicts] == [2, 2, 0]  # the whole, and "the gardener"; "yes", and that


def test_sources_of_evaluation_texts_are_read_once_a_context():
    read = []

    class Counting(ScriptedContext):
        def source_texts(self, source):
            read.append(source)
            return super().source_texts(source)

    judge, asked = ContaminationFilter(["a"]), Counting(TOKENIZER, sources={"a": [ENGLISH]})
    for _ in range(3):
        assert not judge.judge([text_sample(ENGLISH)], asked)[0].keep
    assert read == ["a"]
    other = Counting(TOKENIZER, sources={"a": [GERMAN]})
    assert judge.judge([text_sample(ENGLISH)], other)[0].keep
    assert read == ["a", "a"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerplexityFilter(lowest=5, highest=4), "lowest below highest; found lowest=5, highest=4"),
        (lambda: PerplexityFilter(side="left"), "side is high, low or both; found 'left'"),
        (lambda: LengthFilter(0), "shortest at least 1"),
        (lambda: LengthFilter(5, 4), "found shortest=5, longest=4"),
        (lambda: RepetitionFilter(n=0), "n-grams of at least 1 token"),
        (lambda: RepetitionFilter(most=1.5), "most as a share from 0 to 1"),
        (lambda: RepetitionFilter(ratio=0), "ratio is above 0, or null; found 0"),
        (lambda: DuplicatesFilter(1.5), "similarity is above 0 and at most 1"),
        (lambda: DuplicatesFilter(permutations=4), "at least 16 permutations"),
        (lambda: LanguageFilter(["en", "german"]), r"knows no language 'german'.*nown: .*\bde, .*\ben, "),
        (lambda: LanguageFilter([]), "no language to keep"),
        (lambda: LanguageFilter(confidence=2), "a probability from 0 to 1"),
        (lambda: ContaminationFilter(), "nothing to compare with; name the sources"),
        (lambda: ContaminationFilter(["a"], n=0), "at least 1 word"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_source_without_texts_to_compare_with_is_refused():
    with pytest.raises(CalibrationError, match="'short' holds no text of at least 8 words"):
        ContaminationFilter(["short"]).judge([text_sample(ENGLISH)], context())


def recipe_with(tmp_path, filters: str, **calibration):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"calibration:\n  filters: {filters}\n")
    return load_recipe(str(path), (), {f"calibration.{key}": value for key, value in calibration.items()})


def test_a_recipe_gives_filters_their_settings_as_strict_types(tmp_path):
    given = (
        "[{name: duplicates}, {name: language, keep: [en, de]}, {name: perplexity, side: both, highest: 90}, length]"
    )
    assert make_filters(recipe_with(tmp_path, given)) == [
        DuplicatesFilter(),
        LanguageFilter(["en", "de"]),
        PerplexityFilter(side="both", highest=90),
        LengthFilter(),
    ]
    for wrong, message in [
        ("[{name: language, keep: en}]", "keep: .*list"),
        ("[{name: language, keep: [1]}]", "keep: .*string"),
        ("[{name: perplexity, side: left}]", "side: .*'high', 'low' or 'both'"),
        ("[{name: length, shortest: 2.5}]", "shortest: .*integer"),
        ("[{name: duplicates, similar: 0.9}]", "did you mean 'similarity'"),
    ]:
        with pytest.raises(RecipeError, match=message):
            make_filters(recipe_with(tmp_path, wrong))


def test_a_set_drawn_through_filters_is_whole_or_says_which_filter_took_what(tmp_path, llama, text_file):
    def drawn(filters: str, samples: int, **options):
        recipe = recipe_with(tmp_path, filters, source=str(text_file), length=16, samples=samples, **options)
        stage = plan_calibration(recipe, resolve_model(str(llama)))
        return stage.run(tmp_path / f"set{len(list(tmp_path.iterdir()))}", Reporter())

    found = drawn("[{name: duplicates, similarity: 1.0}]", 40)  # the file's lines are alike: some windows are equal
    lines = (found / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 40
    account = json.loads((found / "manifest.json").read_text())["account"]
    assert account["windows_drawn"] - account["windows_dropped"] >= 40 < account["windows_drawn"]
    dropped = (found / "dropped.jsonl").read_text()
    assert '"filter": "duplicates"' in dropped
    with pytest.raises(
        CalibrationError, match=r"the filters kept 0 of 8 windows \(length: 8 longer than 9 tokens\); loosen"
    ):
        drawn("[{name: length, longest: 9}]", 8)
    with pytest.raises(
        CalibrationError, match=r"duplicates: \d+ at least 0.1 similar.*More windows could not be drawn"
    ):
        drawn("[{name: duplicates, similarity: 0.1, n: 1}]", 300)


def test_generation_through_filters_goes_on_until_enough_is_kept_or_names_the_filter(tmp_path):
    engine = ScriptedEngine(length_of=lambda number: 9 if number % 4 else None)
    generated = replace(writer(engine), filters=[LengthFilter(shortest=10)]).run(
        Goal(tokens=20 * 15), Journal(tmp_path / "half")
    )
    assert sum(verdict.keep for verdict in generated.verdicts) >= 20
    assert len(engine.batches) < 20  # not one by one, though three in four are dropped
    none = replace(writer(ScriptedEngine(), batch_size=64), filters=[LengthFilter(longest=9)])
    with pytest.raises(
        CalibrationError, match=r"or the filters drop them \(length: [\d,]+ longer than 9 tokens\)\. The"
    ):
        none.run(Goal(tokens=10**5), Journal(tmp_path / "none"))


def test_a_pool_of_generations_that_filters_empty_says_so(tmp_path, llama, text_file):
    own = {"generation.generations": 6, "generation.prefixes": str(text_file)}
    recipe = recipe_with(tmp_path, "[{name: length, longest: 3}]", length=16, samples=4, **own)
    stage = plan_calibration(recipe, resolve_model(str(llama)))
    with pytest.raises(
        CalibrationError, match=r"yields 0: .* The filters dropped \(length: 6 longer than 3 tokens\)\."
    ):
        stage.run(tmp_path / "set", Reporter())
