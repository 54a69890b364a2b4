"""What calibration sets are like: every measure against a plain computation of the same, the page, the command."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import VOCABULARY, ScriptedContext, save_model, tiny_tokenizer
from secateur import api, diagnosis
from secateur.calibration import diversity, similarity
from secateur.calibration.sample import CalibrationSet, Sample
from secateur.cli.main import main
from secateur.diagnosis import MEASURES, Options, Reference, Subject, examine, families, measure
from secateur.diagnosis.languages import language_counts
from secateur.diagnosis.observation import effective_rank, halves, observe
from secateur.diagnosis.overlap import overlap
from secateur.errors import CalibrationError, NumericsError, PatternError, UnknownNameError, UsageError
from secateur.masks import parse_pattern
from secateur.masks.agreement import agreement, chance_jaccard, jaccard, shared_counts
from secateur.methods.wanda import Wanda
from secateur.models.batches import make_batches
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.pipeline.profile import diagnose
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.recipe_file import load_recipe
from secateur.reports.profile_figures import _names
from secateur.reports.profile_page import profile_page, shown
from secateur.statistics import ColumnNorms, InputStatistics

PHRASES = [
    "the quick brown fox jumps over",
    "a lazy dog sleeps in the sun",
    "seven foxes, and a dog!",
    "no words here at all",
]


def made_samples(count: int = 8, length: int = 20, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [
        Sample((0, *(rng.randrange(3, VOCABULARY) for _ in range(length - 1))), mean_logprob=-rng.uniform(1, 5))
        for _ in range(count)
    ]


def scripted(**options):
    return ScriptedContext(min_k=lambda sample, share, plus: sample.token_ids[1] * share + plus, **options)


@pytest.fixture(scope="module")
def skeleton(llama):
    return Skeleton(llama)


# Text alone


def slow_shingles(texts, size=3):
    found = set()
    for text in texts:
        run = re.findall(r"\w+", text.lower())
        for start in range(len(run) - size + 1):
            found.add(" ".join(run[start : start + size]))
    return found


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="aB _.\n", max_size=60), max_size=5), st.integers(1, 4))
def test_shingles_are_the_n_grams_of_lower_case_words_of_one_text(texts, size):
    assert similarity.shingles(texts, size) == slow_shingles(texts, size)


def test_exact_similarity_of_known_sets():
    one, other = {"a", "b", "c"}, {"b", "c", "d", "e"}
    assert similarity.jaccard(one, other) == 2 / 5
    assert similarity.containment(one, other) == 2 / 3
    assert similarity.containment(other, one) == 2 / 4
    assert similarity.jaccard(one, one) == 1
    assert similarity.jaccard(set(), set()) == similarity.containment(set(), one) == 0


@pytest.mark.parametrize("shared", [0, 60, 300, 540, 600])
def test_min_hash_is_within_its_sampling_error_of_the_exact_index(shared):
    one = {f"word {number}" for number in range(600)}
    other = {f"word {number}" for number in range(600 - shared, 1200 - shared)}
    exact = similarity.jaccard(one, other)
    estimates = [
        similarity.sketch(one, 256, seed).jaccard(similarity.sketch(other, 256, seed)) for seed in range(1, 13)
    ]
    error = similarity.sampling_error(exact, 256)
    assert all(abs(estimate - exact) <= 4.5 * error for estimate in estimates)
    mean = sum(estimates) / len(estimates)
    assert abs(mean - exact) <= 4.5 * error / math.sqrt(len(estimates))


def test_sampling_error_of_known_values():
    assert similarity.sampling_error(0.5, 256) == 0.5 / 16
    assert similarity.sampling_error(0.0, 256) == similarity.sampling_error(1.0, 256) == 0


def test_distinct_n_and_repetition_of_known_sequences():
    sequences = [[1, 2, 1, 2, 1], [1, 2, 3]]
    assert diversity.distinct(sequences, 1) == 3 / 8
    assert diversity.distinct(sequences, 2) == 3 / 6  # 12 21 23, of 12 21 12 21 and 12 23: none spans two sequences
    assert diversity.repeated(sequences, 2) == ((1 - 2 / 4) + 0) / 2
    assert diversity.repeated([[7] * 10, [1, 2]], 4) == 1 - 1 / 7  # the second has no 4-gram
    assert diversity.distinct([[1]], 2) == diversity.repeated([[1]], 4) == 0


def test_compression_sees_repetition_between_samples_and_not_their_order():
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcdefghijklmnop") for _ in range(5000)) for _ in range(10)]
    other = diversity.compression_ratio(texts)
    assert 1.5 < other < 2.1  # four of eight bits
    assert diversity.compression_ratio([texts[0]] * 10) > 5 * other
    assert diversity.compression_ratio(texts[::-1]) == other
    assert diversity.compression_ratio([]) == 1


counts = st.dictionaries(st.integers(0, 9), st.integers(1, 30), min_size=1)


@given(counts, counts)
def test_divergences_of_token_frequencies_against_dense_vectors(one, other):
    vocabulary = 12
    p, q = ([count.get(token, 0) for token in range(vocabulary)] for count in (one, other))
    smooth = [[(value + 0.5) / (sum(side) + vocabulary / 2) for value in side] for side in (p, q)]
    slow_kl = sum(a * math.log(a / b) for a, b in zip(*smooth, strict=True))
    assert diversity.kl(one, other, vocabulary) == pytest.approx(slow_kl, abs=1e-12)
    plain = [[value / sum(side) for value in side] for side in (p, q)]
    middle = [(a + b) / 2 for a, b in zip(*plain, strict=True)]
    slow_js = sum(a * math.log(a / m) / 2 for side in plain for a, m in zip(side, middle, strict=True) if a)
    assert diversity.jensen_shannon(one, other) == pytest.approx(slow_js, abs=1e-12)
    assert diversity.jensen_shannon(one, one) == pytest.approx(0, abs=1e-12)


def test_extremes_of_token_frequencies():
    assert diversity.jensen_shannon({1: 3}, {2: 5}) == pytest.approx(math.log(2))
    assert diversity.mass_covered({1: 1, 2: 9}, {1: 6, 3: 4}) == 0.6
    assert diversity.mass_covered({1: 1}, {}) == 0
    assert diversity.counts([[1, 2], [2]]) == Counter({2: 2, 1: 1})


def test_languages_are_told_apart():
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß warum er das tut."
    english = "The quick brown fox jumps over the lazy dog, and nobody knows why it would want to do that."
    assert language_counts([english, german, english, ""]) == {"en": 2, "de": 1, "und": 1}


# Masks


def test_agreement_of_masks_counted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(13, 7, generator=generator) > share for share in (0.2, 0.5, 0.7)]
    shared = shared_counts(masks)
    pruned = [{index for index, kept in enumerate(mask.flatten().tolist()) if not kept} for mask in masks]
    for one in range(3):
        for other in range(3):
            a, b = pruned[one], pruned[other]
            assert shared[one, other] == len(a & b)
            assert jaccard(shared)[one, other] == pytest.approx(len(a & b) / len(a | b))
            assert agreement(shared, 91)[one, other] == pytest.approx((len(a & b) + 91 - len(a | b)) / 91)


def test_masks_that_prune_nothing_agree_and_independent_ones_overlap_by_chance():
    nothing = torch.ones(4, 4, dtype=torch.bool)
    assert jaccard(shared_counts([nothing, nothing]))[0, 1] == 1
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(1500, 1500, generator=generator) > 0.4 for _ in range(2)]  # more than one part of columns
    assert jaccard(shared_counts(masks))[0, 1] == pytest.approx(chance_jaccard(0.4), abs=2e-3)


def test_overlap_of_identical_sets_is_one_and_of_halves_less(skeleton):
    one = observe(skeleton, [sample.token_ids for sample in made_samples()], 4)
    other = observe(skeleton, [sample.token_ids for sample in made_samples(seed=1)], 4)
    found = overlap(skeleton, [one, one, other], parse_pattern("unstructured"), 0.5)
    assert found.whole[0, 1] == found.agree[0, 1] == 1
    assert found.whole[0, 2] < 1
    assert 1 / 3 < found.halves[0, 0] < found.whole[0, 0] == 1
    assert found.halves[0, 0] == found.halves[1, 1]
    assert torch.allclose(found.halves, found.halves.T)
    # halves of one set twice: two of the four pairs are the same half
    assert found.halves[0, 1] == pytest.approx((1 + float(found.halves[0, 0])) / 2)


def test_overlap_is_that_of_the_masks_wanda_makes(skeleton, llama):
    sets = [[sample.token_ids for sample in made_samples(seed=seed)] for seed in (0, 1)]
    seen = [observe(skeleton, ids, 4) for ids in sets]
    model, pattern = load_model(llama), parse_pattern("2:4")
    indices, agreements = [], []
    for name, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear) and "layers" in name:
            pruned = []
            for ids in sets:
                norms = ColumnNorms(linear.in_features)
                handle = linear.register_forward_pre_hook(lambda _, args, norms=norms: norms.update(args[0]))
                with torch.inference_mode():
                    for sequence in ids:
                        model(torch.tensor([sequence]))
                handle.remove()
                mask = Wanda().prune(linear.weight.data, InputStatistics([norms]), pattern, 0.5).mask
                pruned.append({index for index, kept in enumerate(mask.flatten().tolist()) if not kept})
            a, b = pruned
            indices.append(len(a & b) / len(a | b))
            agreements.append((len(a & b) + linear.weight.numel() - len(a | b)) / linear.weight.numel())
    found = overlap(skeleton, seen, pattern, 0.5)
    assert len(indices) == 14
    assert float(found.whole[0, 1]) == pytest.approx(sum(indices) / 14, abs=0.005)
    assert float(found.agree[0, 1]) == pytest.approx(sum(agreements) / 14, abs=0.005)
    assert found.chance == pytest.approx(1 / 3)


def test_a_pattern_that_does_not_fit_is_refused(skeleton):
    one = observe(skeleton, [sample.token_ids for sample in made_samples(2)], 4, spectra=False)
    with pytest.raises(PatternError, match="32 inputs"):
        overlap(skeleton, [one], parse_pattern("3:7"), 4 / 7)


# Inside the model


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0, 0, 0])) == pytest.approx(1)
    p = [0.5, 0.25, 0.25]
    assert effective_rank(torch.tensor([2.0, 1, 1])) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert effective_rank(torch.zeros(3)) == 0


def test_spectra_are_those_of_the_dense_models_inputs(skeleton, llama):
    ids = [sample.token_ids for sample in made_samples(9, 16)]
    found = observe(skeleton, [*ids, ids[0][:7]], 4)  # one is shorter, so padded
    model = load_model(llama)
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0]))
    with torch.inference_mode():
        for sequence in [*ids, ids[0][:7]]:
            model(torch.tensor([sequence]))
    shape = [(3, "q_proj"), (1, "o_proj"), (2, "gate_proj"), (1, "down_proj")]
    expected = [(block, linears, name) for block in (0, 1) for linears, name in shape]
    assert [(one.block, one.linears, one.name.split(".")[-1]) for one in found.spectra] == expected
    for one in found.spectra:
        rows = torch.cat(inputs[one.name]).double()
        values = torch.linalg.svdvals(rows.T @ rows)
        p = values / values.sum()
        assert one.effective_rank == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-3)
        assert one.log10_condition == pytest.approx(float((values[0] / values[-1]).log10()), abs=0.05)
        assert one.curve[0] == 0
        assert all(before >= after for before, after in pairwise(one.curve))
        norms = found.norms[one.name]
        assert norms.tokens == len(rows)
        torch.testing.assert_close(norms.norms().double(), rows.square().mean(dim=0).sqrt(), rtol=1e-4, atol=1e-6)


def test_a_gram_that_is_singular_has_the_condition_that_fp32_can_tell(skeleton):
    found = observe(skeleton, [made_samples(1, 5)[0].token_ids], 4)
    widest = max(found.spectra, key=lambda one: one.inputs)
    assert widest.log10_condition == pytest.approx(-math.log10(widest.inputs * torch.finfo(torch.float32).eps))
    assert widest.effective_rank <= 5
    assert found.halves == ()


def test_a_mixture_of_experts_is_measured_where_tokens_go(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=12,
        num_experts_per_tok=1,
        max_position_embeddings=64,
    )
    mixture = Skeleton(save_model(config, tmp_path))
    observed = observe(mixture, [sample.token_ids for sample in made_samples(2, 4)], 4)
    reached = [name for name, norms in observed.norms.items() if norms.tokens and "experts" in name]
    assert 0 < len(reached) < 2 * 12 * 3  # 16 token choices cannot reach them all
    assert all(spectrum.effective_rank >= 1 for spectrum in observed.spectra)
    found = measure(made_samples(2, 4), scripted(), reference_of(tiny_tokenizer()), mixture)
    assert all(math.isfinite(value) for value in found.values())
    assert {"effective_rank", "norm_distance", "mask_overlap_reference"} <= found.keys()


def test_halves_are_disjoint_and_do_not_depend_on_the_order():
    ids = [sample.token_ids for sample in made_samples(7)]
    ids += [ids[0]] * 2
    one, other = halves(ids)
    assert sorted([*one, *other]) == sorted(ids)
    assert abs(len(one) - len(other)) == 1
    shuffled = ids[:]
    random.Random(3).shuffle(shuffled)
    assert halves(shuffled) == [one, other]


# All of it together


def reference_of(tokenizer, copies: int = 40) -> Reference:
    return Reference(PHRASES * copies, tokenizer, "phrases")


def test_no_measure_depends_on_the_order_of_samples(skeleton):
    samples, context = made_samples(12), scripted()
    reference = reference_of(context.tokenizer)
    found = measure(CalibrationSet(tuple(samples)), context, reference, skeleton)
    shuffled = samples[:]
    random.Random(5).shuffle(shuffled)
    again = measure(shuffled, context, reference, skeleton)
    assert again == pytest.approx(found, rel=1e-5)
    assert found.keys() == {name for family in families().values() for name in family.quantities}
    assert all(math.isfinite(value) for value in found.values())


def test_without_reference_and_model_what_needs_them_is_left_out():
    found = measure(made_samples(), scripted())
    assert {"perplexity", "distinct_2", "english", "tokens"} <= found.keys()
    assert not {"jaccard", "unigram_kl", "effective_rank", "mask_overlap_within"} & found.keys()
    assert measure(made_samples(), scripted(), only=["size"]).keys() == families(["size"])["size"].quantities.keys()
    with pytest.raises(UnknownNameError, match="no measure named 'sizes'; did you mean 'size'"):
        measure(made_samples(), scripted(), only=["sizes"])


def test_every_quantity_says_what_it_is():
    assert {"size", "likelihood", "masks"} <= MEASURES.entries().keys()
    for family in families().values():
        for quantity in family.quantities.values():
            assert len(quantity.meaning) > 10
            assert format(0.5, quantity.shown)


def test_likelihood_by_hand():
    samples = [
        Sample((0, 5, 6, 7), mean_logprob=-math.log(4)),
        Sample((0, 8), mean_logprob=-math.log(16)),
        Sample((9,), mean_logprob=0.0),  # nothing of it is predicted
    ]
    found = measure(samples, scripted(), options=Options(min_k=0.2), only=["likelihood"])
    assert found["perplexity"] == pytest.approx((4**3 * 16) ** (1 / 4))
    assert found["perplexity_median"] == pytest.approx(10)
    assert found["perplexity_p10"] == pytest.approx(4 + 0.1 * 12)
    assert found["perplexity_p90"] == pytest.approx(4 + 0.9 * 12)
    assert found["perplexity_spread"] == pytest.approx(math.log(14.8 / 5.2))
    assert found["min_k"] == pytest.approx((5 + 8) / 2 * 0.2)
    assert found["min_k_plus"] == pytest.approx(found["min_k"] + 1)


def test_a_perplexity_that_is_not_finite_is_an_error():
    with pytest.raises(NumericsError, match="1 of 2 samples have no finite perplexity"):
        measure(
            [replace(one, mean_logprob=value) for one, value in zip(made_samples(2), (math.nan, -1), strict=True)],
            scripted(),
        )


def test_size_counts_doubles():
    samples = [*made_samples(3), made_samples(1)[0], Sample((0, 4))]
    found = measure(samples, scripted(), only=["size"])
    assert found == {
        "samples": 5,
        "distinct_samples": 4,
        "tokens": 82,
        "length_min": 2,
        "length_median": 20,
        "length_max": 20,
    }


def test_likeness_to_a_reference_of_the_sets_own_text_is_complete():
    tokenizer = tiny_tokenizer()
    samples = [Sample((0, *tokenizer.encode(text, add_special_tokens=False))) for text in PHRASES]
    context = scripted(tokenizer=tokenizer)
    found = measure(samples, context, PHRASES, only=["similarity", "diversity"])
    assert found["jaccard"] == found["jaccard_minhash"] == found["containment"] == found["reference_mass_covered"] == 1
    assert found["jaccard_minhash_error"] == found["unigram_js"] == 0
    assert found["unigram_kl"] == pytest.approx(0)
    seen = {token for sample in samples for token in sample.token_ids[1:]}
    assert found["vocabulary_seen"] == len(seen) / len(tokenizer)
    half = measure(samples, context, PHRASES[:2], only=["similarity"])
    own, other = slow_shingles(PHRASES), slow_shingles(PHRASES[:2])
    assert half["jaccard"] == len(own & other) / len(own | other)
    assert half["containment"] == len(own & other) / len(own)
    assert abs(half["jaccard_minhash"] - half["jaccard"]) < 5 * half["jaccard_minhash_error"]


def test_activations_of_the_reference_itself_are_at_no_distance(skeleton):
    context = scripted()
    reference = reference_of(context.tokenizer)
    like = reference.samples_like(made_samples(6))
    assert len(like) == 6
    assert all(len(sample.token_ids) == 20 and sample.token_ids[0] == 0 for sample in like)
    found = measure(like, context, reference, skeleton, only=["activations", "masks"])
    assert found["norm_distance"] == pytest.approx(0, abs=1e-6)
    assert found["norm_correlation"] == pytest.approx(1)
    assert found["norm_rank_correlation"] == pytest.approx(1)
    assert found["mask_overlap_reference"] == found["mask_agreement_reference"] == 1
    other = measure(made_samples(6), context, reference, skeleton, only=["activations"])
    assert other["norm_distance"] > 0.05
    assert other["norm_correlation"] < 1


def test_norm_distance_by_hand(skeleton):
    context = scripted()
    subject = Subject(made_samples(4), context, reference_of(context.tokenizer), skeleton)
    own, theirs = subject.observed, subject.observed_reference
    assert own is not None
    assert theirs is not None
    distances = []
    for one in own.spectra:
        a, b = own.norms[one.name].norms().tolist(), theirs.norms[one.name].norms().tolist()
        distances.append(math.dist(a, b) / math.hypot(*b))
    value = examine(subject, ["activations"])["activations"].values["norm_distance"]
    assert value == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(CalibrationError, match="without samples"):
        measure([], scripted())
    with pytest.raises(CalibrationError, match="'reference' holds no text"):
        measure(made_samples(), scripted(), [" ", ""])
    with pytest.raises(CalibrationError, match="no three words in a row"):
        measure(made_samples(), scripted(), ["two words"])
    with pytest.raises(CalibrationError, match="fewer than one sample of 20"):
        Reference(["one two three"], tiny_tokenizer()).samples_like(made_samples())
    with pytest.raises(UsageError, match="at least 2 permutations; found 1"):
        Options(permutations=1)
    with pytest.raises(UsageError, match=r"at most 1; found 1\.5"):
        Options(min_k=1.5)


# The command, and the page


@pytest.fixture(scope="module")
def sets(llama, text_file, tmp_path_factory):
    """A set of text with a filter, one of random tokens."""
    place = tmp_path_factory.mktemp("sets")
    small = ["calibration.samples=6", "calibration.length=24"]
    filters = "calibration.filters=[{name: perplexity, drop: 0.25}]"
    wanted = {"text": [f"calibration.source={text_file}", filters], "random": ["calibration.source=random-tokens"]}
    for name, how in wanted.items():
        api.generate(load_recipe(None, [*small, *how], {"model": str(llama)}), place / name)
    return place


def profile(capsys, *arguments):
    code = main(["profile", *map(str, arguments), "-q"])
    return code, *capsys.readouterr()


class Links(HTMLParser):
    """Notes the tags and whatever would be fetched."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags, self.ids = [], Counter(), []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.fetched += [
            (tag, key, value) for key, value in attrs if key in ("src", "href", "xlink:href", "data", "action")
        ]
        self.ids += [value for key, value in attrs if key == "id"]


def test_profile_prints_a_table_and_writes_a_page_that_needs_nothing_else(sets, text_file, tmp_path, capsys):
    out = tmp_path / "out"
    code, printed, errors = profile(capsys, sets / "text", sets / "random", "--reference", text_file, "--out", out)
    assert code == 0, errors
    for words in ("perplexity", "3-gram Jaccard, exact", "effective rank", "overlap of halves", "by chance 0.333"):
        assert words in printed
    page = (out / "profile.html").read_text()
    assert not re.search(r"https?://|<script|@import|url\((?!#)", page)
    links = Links()
    links.feed(page)
    assert all(value.startswith("#") for _, _, value in links.fetched)
    assert {value[1:] for _, _, value in links.fetched} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    assert links.tags["svg"] == 6
    assert "dropped" in page
    found = json.loads((out / "profile.json").read_text())
    assert [one["name"] for one in found["sets"]] == ["text", "random"]
    assert found["reference"]["texts"] == 50
    assert str(text_file.parent) not in page
    assert str(text_file.parent) not in json.dumps(found)
    again, printed_again, _ = profile(
        capsys, sets / "text", sets / "random", "--reference", text_file, "--out", out, "--json"
    )
    assert again == 0
    assert json.loads(printed_again) == found
    code, _, errors = profile(capsys, sets / "text", "--out", out)
    assert code == 2
    assert "another run" in errors


def test_json_goes_to_stdout_alone_and_nothing_is_stored(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, errors = profile(
        capsys, sets / "text", sets / "text", "--json", "--permutations", 32, "--min-k", 0.2
    )
    assert (code, errors) == (0, "")
    found = json.loads(printed)
    assert [one["name"] for one in found["sets"]] == ["text", "text (2)"]
    assert found["options"] == {"permutations": 32, "min_k": 0.2, "pattern": "unstructured", "sparsity": 0.5}
    assert found["between"]["jaccard"][0][1] == 1
    assert found["between"]["masks"]["whole"][0][1] == 1
    assert not list(tmp_path.iterdir())
    assert found["reference"] is None
    values = {name: value for one in found["sets"][0]["families"].values() for name, value in one["values"].items()}
    alone = diagnose(sets / "text", found_model(sets)) | {name: values[name] for name in ("min_k", "min_k_plus")}
    assert values == pytest.approx(alone, rel=1e-5)


def found_model(sets):
    return json.loads((sets / "text" / "manifest.json").read_text())["model"]["name"]


def test_diagnose_gives_every_number_of_one_set(sets, text_file):
    found = diagnose(sets / "text", found_model(sets), reference=str(text_file))
    assert found.keys() == {name for family in families().values() for name in family.quantities}
    assert found["containment"] > 0.5
    assert diagnose(sets / "random", found_model(sets), reference=str(text_file))["containment"] < 0.1


def test_stored_log_probabilities_of_another_model_are_not_used(sets, llama, tmp_path, capsys):
    config = transformers.LlamaConfig(**json.loads((llama / "config.json").read_text()) | {"num_hidden_layers": 1})
    other = save_model(config, tmp_path / "other")
    _, printed, _ = profile(capsys, sets / "text", "--json")
    own = json.loads(printed)["sets"][0]["families"]["likelihood"]["values"]["perplexity"]
    code, printed, errors = profile(capsys, sets / "text", "--json", "--model", other)
    assert code == 0, errors
    found = json.loads(printed)["sets"][0]["families"]["likelihood"]["values"]["perplexity"]
    assert found != pytest.approx(own, rel=1e-3)
    losses = []
    model = load_model(other)
    samples = [json.loads(line)["token_ids"] for line in (sets / "text" / "samples.jsonl").read_text().splitlines()]
    for batch in make_batches(samples, 1):
        with torch.inference_mode():
            losses.append(float(model(batch.ids, labels=batch.ids).loss))
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_text_of_samples_and_names_are_escaped(sets, tmp_path):
    found = api.profile(Recipe(), [sets / "text"])
    found["sets"][0]["name"] = "<b>$x_1$"
    found["sets"][0]["texts"] = {
        "dropped": [{"text": "<b>bold</b><script>1</script>", "cut": False, "value": 3, "reason": "<i>"}]
    }
    page = profile_page(found)
    links = Links()
    links.feed(page)
    assert not {"b", "i", "script"} & links.tags.keys()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.count("&lt;b&gt;$x_1$") >= 4  # in figures too, as it is


def test_long_names_that_are_the_same_when_cut_are_numbered():
    names = ["one", "a-very-long-name-of-a-set-with-it", "a-very-long-name-of-another-set-with-it"]
    shown = _names({"sets": [{"name": name} for name in names]})
    assert shown[0] == "one"
    assert len(set(shown)) == 3
    assert shown[1].startswith("2: a-very-long-n")


def test_numbers_are_shown_as_their_quantity_says():
    assert [shown(value, ".3f") for value in (1.23456, 999.5, 12345.6, None)] == ["1.235", "999.500", "12,346", "-"]
    assert shown(0.123, ".1%") == "12.3%"


def test_a_reference_that_is_a_set_is_taken_as_it_is(sets):
    found = diagnose(sets / "text", found_model(sets), reference=str(sets / "text"))
    assert found["norm_distance"] == pytest.approx(0, abs=1e-6)
    assert found["mask_overlap_reference"] == found["jaccard"] == found["reference_mass_covered"] == 1


def test_a_single_sample_is_measured_but_for_its_halves(llama, text_file, tmp_path, capsys):
    settings_ = ["calibration.samples=1", "calibration.length=24", f"calibration.source={text_file}"]
    api.generate(load_recipe(None, settings_, {"model": str(llama)}), tmp_path / "one")
    code, printed, errors = profile(capsys, tmp_path / "one", "--json", "--out", tmp_path / "out")
    assert code == 0, errors
    found = json.loads(printed)
    assert found["between"]["masks"]["halves"] == [[None]]
    assert found["sets"][0]["families"]["masks"]["values"] == {}
    assert (tmp_path / "out" / "profile.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/nowhere"], ["nowhere is not a calibration set: there is no such folder"]),
        (["{tmp}"], ["is not a calibration set: it has no manifest.json"]),
        (["{text_file}"], ["there is a file, not a folder"]),
        (["{sets}/text", "--reference", "{tmp}/empty.jsonl"], ["empty.jsonl' holds no text"]),
        (["{sets}/text", "--reference", "random-tokens"], ["'random-tokens' has none"]),
        (["{sets}/text", "--model", "{tmp}/nomodel"], ["There is no model folder"]),
        (["{sets}/text", "--min-k", "0"], ["found 0.0"]),
        (["{sets}/text", "--set", "pruning.pattern=3:7"], ["32 inputs", "groups of 7"]),
        (["{lost}"], ["lost was made for gone/model, which cannot be had", "--model"]),
        (["{sets}/text", "{lost}"], ["different models", "for gone/model", "--model"]),
        (["{sets}/text", "{foreign}"], ["/text (made for", "/foreign (made for", "different tokenizers"]),
        (["{foreign_old}", "--model", "{llama}"], ["foreign_old was made for", "its tokenizer is another"]),
        (["{empty}"], ["empty has no samples"]),
    ],
)
def test_what_cannot_be_profiled_is_said(sets, llama, text_file, tmp_path, capsys, arguments, words):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    places = {"sets": sets, "tmp": tmp_path, "text_file": text_file, "llama": llama}

    def changed(name, samples=None, without=(), **facts):
        folder = tmp_path / "changed" / name
        folder.mkdir(parents=True)
        manifest = json.loads((sets / "text" / "manifest.json").read_text())
        manifest = {key: value for key, value in (manifest | facts).items() if key not in without}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        lines = (sets / "text" / "samples.jsonl").read_text() if samples is None else samples
        (folder / "samples.jsonl").write_text(lines)
        places[name] = folder

    gone = {"name": "gone/model", "digest": "0" * 64, "revision": None}
    changed("lost", model=gone)
    changed("foreign", model=gone, tokenizer="1" * 64)
    swapped = (sets / "text" / "samples.jsonl").read_text().replace('"text": "', '"text": "other ')
    changed("foreign_old", model=gone, samples=swapped, without=("tokenizer", "vocabulary"))
    changed("empty", samples="")
    code, _, errors = profile(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert len(errors.splitlines()) == 1
    for word in words:
        assert word in errors


def test_dry_run_checks_and_measures_nothing(sets, capsys):
    code, printed, _ = profile(capsys, sets / "text", "--reference", sets / "random", "--dry-run")
    assert (code, "sets         text\nreference    random\n" in printed) == (0, True)
    code, printed, _ = profile(capsys, sets / "text", "--reference", sets / "random", "--dry-run", "--json")
    spec = json.loads(printed)["spec"]
    assert code == 0
    assert spec["reference"]["fingerprint"] == json.loads((sets / "random" / "manifest.json").read_text())["set_digest"]
    assert profile(capsys, sets / "nothing", "--dry-run")[0] == 2


def test_a_checkpoint_is_not_changed_by_looking(skeleton, llama):
    before = (llama / "model.safetensors").read_bytes()
    diagnosis.measure(made_samples(4), scripted(), None, skeleton)
    assert (llama / "model.safetensors").read_bytes() == before
    assert Checkpoint(llama).names == skeleton.checkpoint.names
