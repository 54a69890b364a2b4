"""A named perplexity protocol as one of an evaluation's tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.evaluation.begin import BeginToken
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.protocol import PROTOCOLS, EvaluationText, Protocol, tokenise
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import TaskScore
from secateur.evaluation.text_task import TextTask


@dataclass(frozen=True)
class PerplexityTask(TextTask):
    """``ppl`` by the protocol of the task's name. ``text`` ``None``: the protocol's own; ``limit``: at most so many windows
    or documents, evenly spread. Windows are as long as the model's positions where those are fewer. The begin token stands
    where the paper's program has it, unless the evaluation says otherwise."""

    text: str | None = None
    split: str | None = None
    limit: int | None = None

    @property
    def protocol(self) -> Protocol:
        return PROTOCOLS[self.name]

    def source(self) -> TextSource:
        name, split = self.text or self.protocol.text or "", self.split or self.protocol.split
        return resolve_text_source(name, self.text_key, split)

    def score(self, scorer: Scorer) -> TaskScore:
        protocol, begin = self.protocol, self.protocol.begin(scorer.bos, scorer.tokenizer)
        if protocol.window and scorer.positions and scorer.positions < protocol.window:
            protocol = replace(protocol, window=scorer.positions, name="")
        text = scorer.keep(self, lambda: self._tokenised(protocol, scorer, begin))
        found = perplexity(scorer.model, text, protocol, scorer.batch_size, scorer.progress)
        facts = {"protocol": str(protocol), "tokens": found.tokens, "text": self.source().name, "cut": text.cut}
        facts |= {"bos": begin.place} | ({"note": begin.note} if begin.note else {})
        return TaskScore({"ppl": found.value}, found.sequences, facts=facts)

    def _tokenised(self, protocol: Protocol, scorer: Scorer, begin: BeginToken) -> EvaluationText:
        texts = [text for _, text in self.source().texts() if protocol.window or text.strip()]
        return tokenise(texts, scorer.tokenizer, protocol, scorer.positions, self.limit, begin)


@dataclass(frozen=True)
class WikiText2(PerplexityTask):
    """Perplexity of WikiText-2's test split, in windows of 2,048 tokens."""

    name = "wikitext2"


@dataclass(frozen=True)
class Alpaca(PerplexityTask):
    """Mean perplexity of the first 10,000 Alpaca texts with GPT-4's answers, each whole (the paper's)."""

    name = "alpaca"
