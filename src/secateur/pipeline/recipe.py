"""The recipe: everything that decides a run, as strict types. Each field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from secateur.errors import SecateurError
from secateur.masks.pattern import parse_pattern


class Spec(BaseModel):
    """Base of all parts: unknown keys are errors, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Named(BaseModel):
    """A registered thing by name, with its own settings beside it: ``wanda``, or ``{name: sparsegpt, damping: 0.1}``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _name_alone(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


NamedOrText = Annotated[Named, BeforeValidator(_name_alone)]


class Part(Spec):
    """A source and its share of a mixture."""

    source: str = Field(description="self, a registered source, a file, or a Hub data set ORG/NAME[:SUBSET]")
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="its share, relative to the others' weights"
    )
    text_key: str = Field(default="text", description="key or column of the text in files and data sets")


class GenerationSpec(Spec):
    """How the model writes its own calibration text. The defaults are the paper's, but for the prefix source and unit."""

    style: NamedOrText = Field(default_factory=lambda: Named(name="prefix"), description="see: secateur ls styles")
    engine: NamedOrText = Field(
        default_factory=lambda: Named(name="transformers"), description="see: secateur ls engines"
    )
    prefixes: str | list[Part] = Field(
        default="prose",
        description="source of the texts whose first tokens are the prompts; several take turns by weight",
    )
    prefix_tokens: int = Field(default=2, ge=0, description="tokens of each prompt, the begin token not counted")
    prefix_unit: Literal["paragraph", "document"] = Field(
        default="paragraph", description="what a prefix is the start of"
    )
    prefix_text_key: str = Field(default="text", description="key or column of the text in the prefix source")
    temperature: float = Field(default=0.6, description="of the softmax that tokens are drawn from")
    top_k: int = Field(default=50, description="draw from so many likeliest tokens; 0 for no limit")
    top_p: float = Field(default=0.95, description="draw from the likeliest tokens of this probability in all")
    min_p: float = Field(default=0.0, description="draw from tokens of at least this times the likeliest's probability")
    repetition_penalty: float = Field(default=1.2, description="divides the positive logits of tokens already there")
    options: dict[str, Any] = Field(default_factory=dict, description="further parameters under the engine's own names")
    batch_size: int = Field(default=32, ge=1, description="generations at once; part of what the seed decides")
    generations: int | None = Field(
        default=None, ge=1, description="a fixed number (the paper: 5000); null: as many as needed"
    )


class CalibrationSpec(Spec):
    """The calibration data."""

    source: str = Field(
        default="self",
        description="self, mixture, a registered source, a file, a Hub data set ORG/NAME[:SUBSET], or a finished set",
    )
    mixture: list[Part] = Field(default_factory=list, description="the parts of source mixture, by weight")
    samples: int = Field(default=128, ge=1, description="sequences")
    length: int | None = Field(
        default=None, ge=2, description="tokens each; null: 2048, or the model's positions if fewer"
    )
    packing: Literal["concat", "document", "whole", "paper", "paper-document", "paper-joined"] = Field(
        default="concat",
        description="join and cut; one window a document; documents as they are, cut at length; or as the paper's program "
        "does: random windows of long documents, or of all joined (paper: which of the two it has for the source)",
    )
    bos: Literal["auto", "none", "sample", "document"] = Field(
        default="auto", description="where the begin token stands; auto: in every sample if the tokenizer adds one"
    )
    pool: int = Field(
        default=8,
        ge=1,
        description="concat draws windows from this many times the asked tokens, at most so many of one text",
    )
    text_key: str = Field(default="text", description="key or column of the text in files and data sets")
    split: str = Field(default="train", description="split of a Hub data set or named corpus")
    revision: str | None = Field(default=None, description="revision of a Hub data set")
    filters: list[NamedOrText] | None = Field(
        default=None,
        description="null: drop the 20 % of highest perplexity from generated text, nothing from other sources",
    )
    selection: NamedOrText = Field(
        default_factory=lambda: Named(name="random"), description="of the samples from a pool; see: ls selections"
    )
    generation: GenerationSpec = Field(default_factory=GenerationSpec, description="for source self")


class PruningSpec(Spec):
    """What is pruned, how, and how much."""

    method: NamedOrText = Field(default_factory=lambda: Named(name="wanda"), description="see: secateur ls methods")
    pattern: str = Field(default="unstructured", description="unstructured, or N:M = keep N of every M inputs")
    sparsity: float | None = Field(
        default=None, description="share of weights to prune; null: 0.5, or what N:M implies"
    )
    allocation: NamedOrText = Field(default_factory=lambda: Named(name="uniform"), description="see: ls allocations")
    skip: list[str] = Field(default_factory=list, description="globs of linears to leave dense, e.g. '*.k_proj'")
    include: list[str] = Field(
        default_factory=list, description="globs of linears to prune that stay dense otherwise: routers and the like"
    )
    head: bool = Field(default=False, description="prune lm_head as well")
    propagation: Literal["block", "linear", "dense"] = Field(
        default="block",
        description="inputs of a linear come from: pruned blocks before it, pruned linears before it, or the dense model",
    )
    min_expert_tokens: int = Field(
        default=64, ge=0, description="an expert of a mixture that saw fewer tokens is pruned by magnitude"
    )
    prompt_weight: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of prompt tokens in the statistics, beside 1 for those after; 0: completion only",
    )
    permute: bool = Field(
        default=False,
        description="N:M: reorder the hidden channels of MLPs so that more is kept, where the block computes the same",
    )
    output_error: bool = Field(
        default=False,
        description="record each linear's relative output error on the calibration tokens; costs a Gram where the method has none",
    )
    batch_size: int = Field(default=4, ge=1, description="samples at once through a block")
    activation_gib: float | None = Field(
        default=None, gt=0, description="hidden states beyond this go to disk; null: a quarter of the machine's memory"
    )

    @field_validator("pattern", mode="before")
    @classmethod
    def _pattern(cls, value: object) -> str:
        try:
            return str(parse_pattern(value))
        except SecateurError as error:
            raise ValueError(str(error)) from error


class GenerationsSpec(Spec):
    """Texts that the model goes on with in an evaluation: how long and how repetitive is what it writes?"""

    count: int = Field(default=0, ge=0, description="texts of the evaluation to go on with; 0: none")
    prompt_tokens: int = Field(default=16, ge=1, description="tokens of each that are given")
    tokens: int = Field(default=128, ge=1, description="tokens to write at most")
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="of the softmax; 0: greedy")


class EvaluationSpec(Spec):
    """What a model is measured on."""

    enabled: bool = Field(default=True, description="evaluate after pruning, where memory allows")
    text: str | None = Field(
        default=None,
        description="a source of text; null: held-out library files for the bundled model, else WikiText-2",
    )
    text_key: str = Field(default="text", description="key or column of the text in files and data sets")
    split: str = Field(default="test", description="split of a Hub data set or named corpus")
    protocol: str | None = Field(
        default=None,
        description="concat-N, document, wikitext2 or alpaca (the paper's two); null: concat-2048, or fewer if the model has "
        "fewer positions",
    )
    bos: Literal["auto", "every", "first", "none"] = Field(
        default="auto",
        description="where the begin token stands: in every window or document, in the first only (where the tokenizer itself "
        "puts it in joined text), or nowhere; auto: every if the tokenizer puts one before text, but first for wikitext2, as the "
        "paper's program, and for the bundled model, as it was trained",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="at most so many windows or documents, evenly spread; null: all (128 of the bundled model's own)",
    )
    fidelity: bool = Field(default=True, description="compare with the dense model, where it is known")
    tasks: list[NamedOrText] = Field(
        default_factory=list,
        description="names, or names with settings: next-line, parses, alpaca, wikitext2, paper (its seven), or lm-eval's",
    )
    tasks_from: str | None = Field(
        default=None, description="folder of local files, and YAML definitions, of lm-eval's tasks; null: the Hub"
    )
    task_texts: int = Field(
        default=200, ge=0, description="questions with answers of each task to compare with the dense model on; 0: none"
    )
    confidence_bins: int = Field(default=10, ge=1, description="of equal width, for the expected calibration error")
    generations: GenerationsSpec = Field(default_factory=GenerationsSpec)
    batch_size: int | None = Field(
        default=None, ge=1, description="sequences at once; null: as half a GiB of logits takes"
    )
    dtype: Literal["auto", "stored", "float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the evaluation; stored and auto as for the recipe's dtype"
    )


class Recipe(Spec):
    """One run: a model, its calibration data, its pruning, its evaluation."""

    model: str = Field(default="reference", description="a Hub id, a local folder, or reference (the bundled model)")
    revision: str | None = Field(default=None, description="revision of a Hub model")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "stored", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="generation and block forwards; auto: stored, but float32 on a processor without bf16 arithmetic",
    )
    seed: int = Field(default=0, ge=0, description="decides the calibration draw")
    calibration: CalibrationSpec = Field(default_factory=CalibrationSpec)
    pruning: PruningSpec = Field(default_factory=PruningSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
