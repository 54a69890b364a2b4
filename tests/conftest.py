"""Models of two blocks, built on the spot; a tokenizer for them; the golden outputs of the original programs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from secateur.allocation.base import Allocation
from secateur.allocation.uniform import Uniform
from secateur.calibration.context import Context
from secateur.journal import Journal
from secateur.masks import Pattern, parse_pattern
from secateur.methods import METHODS
from secateur.methods.base import Method, Pruned
from secateur.models.batches import make_batches
from secateur.models.hidden import HiddenStates
from secateur.models.loading import quiet_transformers
from secateur.models.skeleton import Skeleton
from secateur.pruning.loop import Job, Setting, prune_blocks
from secateur.pruning.plan import PruningPlan, plan_pruning
from secateur.pruning.records import BlockJournal, LinearRecord
from secateur.pruning.survey import survey
from secateur.pruning.verify import Verification, verify
from secateur.pruning.workers import Workers
from secateur.statistics import InputStatistics

VOCABULARY, WIDTH = 300, 32
SHARED = Path(__file__).resolve().parents[2] / "shared"

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_COMMON),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
}


def save_model(config: transformers.PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        # Default initialisations are too small for activations to matter.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def sequences(count: int = 6, length: int = 24) -> list[list[int]]:
    """Random tokens; two of the sequences are shorter, so that batches are padded."""
    found = torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    found[1], found[4] = found[1][:9], found[4][:17]
    return found


class Killed(RuntimeError):
    """What ``Watched`` dies of."""


@dataclass
class Watched(Method):
    """A method that remembers the statistics it was handed, by linear name, and dies after ``lives`` linears."""

    inner: Method
    lives: int = 10**9
    seen: dict[str, InputStatistics] = field(default_factory=dict)
    name: str = ""

    def statistics(self) -> tuple[type, ...]:
        return self.inner.statistics()

    def for_linear(self, name: str) -> Method:
        self.name = name
        return self

    def prune(self, weight: torch.Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        if len(self.seen) == self.lives:
            raise Killed
        self.seen[self.name] = stats
        return self.inner.prune(weight, stats, pattern, sparsity)


def planned(
    skeleton: Skeleton,
    method: str | Method,
    pattern: str = "2:4",
    sparsity: float = 0.5,
    allocation: Allocation | None = None,
    **options: Any,
) -> PruningPlan:
    made = METHODS.load(method)() if isinstance(method, str) else method
    return plan_pruning(skeleton, made, parse_pattern(pattern), sparsity, allocation or Uniform(), **options)


def open_job(skeleton: Skeleton, plan: PruningPlan, out: Path) -> Job:
    """The job that fills ``out``: begun, or gone on with where an interrupted one stopped."""
    if not (out / "journal").exists():
        skeleton.stored.copy_to(out)
    (out / "journal").touch()
    return Job(plan, skeleton.stored.of_copy(out), BlockJournal(Journal(out / "journal")))


def prune_folder(
    model: Path,
    out: Path,
    method: str | Method = "wanda",
    pattern: str = "2:4",
    sparsity: float = 0.5,
    batch: int = 4,
    propagation: str = "block",
    hidden: HiddenStates | None = None,
    data: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> tuple[list[LinearRecord], Verification]:
    """Prune ``model`` into ``out`` without the pipeline around it, and verify it. What ``out`` has of an interrupted call
    is used. ``hidden``: what keeps the hidden states, else memory. ``options``: of ``planned``."""
    skeleton = Skeleton(model)
    plan = planned(skeleton, method, pattern, sparsity, **options)
    job = open_job(skeleton, plan, out)
    batches = make_batches(sequences() if data is None else data, batch)
    if plan.allocation.measures:
        journal = Journal(out / "survey")
        plan = plan.allocated(survey(skeleton, plan, batches, journal, HiddenStates(), Workers()))
        job = Job(plan, job.output, job.journal)
    prune_blocks(skeleton, [job], batches, Setting(propagation, HiddenStates() if hidden is None else hidden))
    records = job.journal.records()
    return records, verify(skeleton, out, records, plan.pattern, plan.sparsities)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same files, bit for bit, the journals aside."""
    own = {"journal", "survey"}
    names = [sorted(path.name for path in folder.iterdir() if path.name not in own) for folder in (one, other)]
    return names[0] == names[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in names[0])


def masks_of(folder: Path, records: Sequence[LinearRecord]) -> dict[str, torch.Tensor]:
    return {name: weight != 0 for name, weight in weights_of(folder, records).items()}


def weights_of(folder: Path, records: Sequence[LinearRecord]) -> dict[str, torch.Tensor]:
    """The weights ``[out, in]`` of the linears in a saved model, by name."""
    skeleton = Skeleton(folder)
    linears = {linear.name: linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)}
    return {record.name: skeleton.weight(linears[record.name]) for record in records}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    quiet_transformers()


@pytest.fixture(scope="session", params=list(CONFIGS))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-block model of every supported architecture in turn."""
    return save_model(CONFIGS[request.param](), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(CONFIGS["llama"](), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty documents of different lengths, one a line."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    lines = []
    for index in range(50):
        text = " ".join(words[(index * 7 + step * (1 + index % 3)) % 9] for step in range(20 + 5 * index))
        lines.append(f'{{"text": "{text} {index}"}}')
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the golden outputs and corpora beside the project are not here")
    return SHARED


class ScriptedContext(Context):
    """Answers what a test told it, and nothing else: an unexpected question fails. ``scores``: mean log-probabilities by
    model name (``None``: the model's own); without any, what the samples carry."""

    def __init__(self, tokenizer=None, seed=0, sources=None, scores=None, min_k=None, activations=None, gradients=None):
        self.tokenizer = tokenizer or tiny_tokenizer()
        self.seed = seed
        self.sources, self.scores = sources or {}, scores or {}
        self._min_k, self._activations, self._gradients = min_k, activations, gradients

    def texts(self, samples):
        return self.tokenizer.batch_decode([list(sample.token_ids) for sample in samples], skip_special_tokens=True)

    def source_texts(self, source):
        return iter(self.sources[source])

    def mean_logprobs(self, samples, model=None):
        if model in self.scores:
            return [self.scores[model](sample) for sample in samples]
        assert model is None
        return [float("nan") if sample.mean_logprob is None else sample.mean_logprob for sample in samples]

    def min_k(self, samples, share, plus=True):
        return [self._min_k(sample, share, plus) for sample in samples]

    def activations(self, samples, dimensions):
        return self._activations(samples, dimensions)

    def gradients(self, samples, dimensions, adam):
        return self._gradients(samples, dimensions, adam)


SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from secateur.cli.main import main
from secateur.journal import Journal
append = Journal.append
def slow(self, entry):
    append(self, entry)
    time.sleep(0.7)
Journal.append = slow
sys.exit(main(sys.argv[1:]))
"""
"""The command line as a program that rests after every line of a journal, so that it can be stopped in the middle."""


def wait_for_a_line(process: subprocess.Popen[str], place: Path, journal: str, limit: float = 150) -> None:
    """Until the first of ``journal`` (a glob below ``place``) is written by ``process``, which must go on running."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.read_bytes().count(b"\n") for path in place.glob(journal)):
            break
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read() if process.stderr else process.returncode
