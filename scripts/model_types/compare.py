"""A pruned model as transformers loads it, against the masks that follow from the dense one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_types.build import load, logits
from model_types.expected import magnitude, sparsegpt, wanda
from model_types.products import Inputs, Observed, Region, no_cache, observe
from model_types.pruning import Pruned, Setting

TOLERANCE = {"wanda": 0.002, "sparsegpt": 0.01}
"""Share of a linear's mask that may differ: scores computed in another order of sums are not always ranked alike, and
SparseGPT carries every such difference on to the columns that follow."""
ALWAYS_ALLOWED = 4
"""Entries of a small linear that may differ whatever their share: two weights changing places."""


@dataclass(frozen=True)
class Difference:
    """``different`` of a linear's ``entries``. ``blind``: of a mask by the weights alone; near it, agreement says little.
    ``parts``: how many linears of equal outputs it was taken for."""

    name: str
    entries: int
    different: int
    blind: int
    parts: int = 1

    @property
    def share(self) -> float:
        return self.different / self.entries


@dataclass
class Comparison:
    """``problems``: sentences about what should not be. ``unseen``: pruned, but nothing could be compared, and why."""

    setting: Setting
    compared: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)
    left_dense: list[str] = field(default_factory=list)
    pruned_share: float = 0.0
    """Of the numbers in the blocks' matrices, those in matrices that were pruned."""

    @property
    def worst(self) -> Difference | None:
        return max(self.compared, key=lambda one: one.share, default=None)

    def differing(self) -> list[Difference]:
        return [one for one in self.compared if differs(one, self.setting)]


def differs(one: Difference, setting: Setting) -> bool:
    """Whether more of a mask differs than is allowed."""
    return one.different > max(ALWAYS_ALLOWED, TOLERANCE[setting.method] * one.entries)


class Oracle:
    """The dense model, and what its linears are multiplied with."""

    def __init__(self, dense: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> None:
        self.dense = dense
        self.sequences = sequences
        self.matrices = [name for name, value in self.dense.named_parameters() if value.ndim > 1]
        self.observed = observe(self.dense, sequences, self.matrices)

    def compare(self, pruned: Pruned, setting: Setting) -> Comparison:
        """Every linear that pruning changed, against the mask expected of it."""
        found = load(pruned.folder)
        comparison = Comparison(setting)
        changed = changed_parameters(self.dense, found)
        comparison.problems += [
            f"{name} was changed, but is no matrix" for name in changed if name not in self.matrices
        ]
        changed = [name for name in changed if name in self.matrices]
        for names, observed in self._inputs(found, changed, setting):
            for name in names:
                _compare_parameter(comparison, name, self.dense, found, observed)
        comparison.problems += _zeros_problem(found, changed, pruned)
        used = {region.parameter for region in self.observed.inputs}
        blocks = {block_of(self.dense, name)[0] for name in changed}
        inside = [name for name in self.matrices if name in used and block_of(self.dense, name)[0] in blocks]
        comparison.left_dense = [name for name in inside if name not in changed]
        sizes = {name: self.dense.get_parameter(name).numel() for name in {*inside, *changed}}
        comparison.pruned_share = sum(sizes[name] for name in changed) / max(1, sum(sizes.values()))
        return comparison

    def padding_matters(self) -> float:
        """The largest difference that padding on the right makes to a logit of the dense model, of its largest logit."""
        longest = max(map(len, self.sequences))
        ids = torch.zeros(len(self.sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(self.sequences):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.no_grad():
            padded = self.dense(input_ids=ids, attention_mask=mask, **no_cache(self.dense)).logits
        alone = [logits(self.dense, list(tokens))[0] for tokens in self.sequences]
        gaps = [float((padded[row, : len(one)] - one).abs().max()) for row, one in enumerate(alone)]
        return max(gaps) / max(float(one.abs().max()) for one in alone)

    def _inputs(
        self, found: PreTrainedModel, changed: list[str], setting: Setting
    ) -> Iterator[tuple[list[str], Observed]]:
        """The changed parameters and what they are multiplied with: in the dense model, or block after block in one whose
        earlier blocks are pruned as ``found`` has them."""
        if setting.propagation == "dense":
            yield changed, self.observed
            return
        model = copy.deepcopy(self.dense)
        by_block: dict[tuple[str, int], list[str]] = {}
        for name in changed:
            by_block.setdefault(block_of(model, name), []).append(name)
        for names in by_block.values():
            yield names, observe(model, self.sequences, names)
            with torch.no_grad():
                for name in names:
                    model.get_parameter(name).copy_(found.get_parameter(name))


def changed_parameters(dense: nn.Module, found: nn.Module) -> list[str]:
    """Names of the tensors, buffers included, that are not bit-identical; tied ones once."""
    others = dict(found.named_parameters()) | dict(found.named_buffers())
    own = dict(dense.named_parameters()) | dict(dense.named_buffers())
    return [name for name, value in own.items() if not _same_bits(value, others[name])]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.detach().reshape(-1).view(torch.uint8), other.detach().reshape(-1).view(torch.uint8))


def block_of(model: nn.Module, name: str) -> tuple[str, int]:
    """The outermost list of modules that the parameter is in, and its place there; of those outside, the empty name."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return ".".join(parts[:end]), int(parts[end])
    return "", 0


def _compare_parameter(
    comparison: Comparison, name: str, dense: nn.Module, found: nn.Module, observed: Observed
) -> None:
    before, after = dense.get_parameter(name).detach(), found.get_parameter(name).detach()
    regions = observed.of_parameter(name)
    if name in observed.odd or not regions:
        reason = "used in a way that is not understood" if name in observed.odd else "never multiplied by anything"
        comparison.unseen[name] = reason
        return
    matrices = before.reshape(-1, *before.shape[-2:])
    for number in range(len(matrices)):
        own = [region for region in regions if region.number == number]
        if not own and matrices[number].equal(after.reshape(matrices.shape)[number]):
            continue
        if not own:  # an expert that was chosen for no token: laid out as the others are
            like = regions[0]
            own = [Region(name, number, like.across, like.rows, like.columns)]
        if sum(_size(region) for region in own) != matrices[number].numel():
            whole = [region for region in own if _size(region) == matrices[number].numel()]
            if not whole:
                comparison.unseen[f"{name}[{number}]"] = "multiplied in part only, or in parts that overlap"
                continue
            own = whole
        for region in own:
            _compare_region(comparison, region, before, after, observed.inputs.get(region, []))


def _size(region: Region) -> int:
    return (region.rows[1] - region.rows[0]) * (region.columns[1] - region.columns[0])


def _compare_region(
    comparison: Comparison, region: Region, before: Tensor, after: Tensor, inputs: list[Inputs]
) -> None:
    setting = comparison.setting
    weight, result = region.of(before), region.of(after)
    if weight.equal(result):
        return
    mask = result != 0
    blind = int((blind_mask(weight, setting) != mask).sum())
    tried: list[Difference] = []
    for expected, parts in expected_masks(weight, inputs, setting):
        tried.append(Difference(str(region), mask.numel(), int((expected != mask).sum()), blind, parts))
        if not differs(tried[-1], setting):
            break
    comparison.compared.append(min(tried, key=lambda one: one.different))
    if setting.method == "wanda" and not torch.equal(result[mask], weight[mask]):
        comparison.problems.append(f"{region} has weights that were kept, but changed")


def blind_mask(weight: Tensor, setting: Setting) -> Tensor:
    """The mask by the weights alone, compared as the method compares."""
    return wanda(weight, torch.eye(weight.shape[1], dtype=torch.float64), setting.group)


def expected_masks(weight: Tensor, inputs: list[Inputs], setting: Setting) -> Iterator[tuple[Tensor, int]]:
    """Masks that would be right: of weights used more than once in a forward, by all uses or the first alone; by magnitude
    where there were no inputs, or only zeros (what an expert that was not chosen may be given); where outputs compete
    (SparseGPT unstructured, magnitude), of the matrix as one linear or as two of half the outputs."""
    grams: list[Tensor | None] = [one.gram for one in inputs[:1]]
    if len(inputs) > 1:
        grams.insert(0, sum((one.gram for one in inputs[1:]), start=inputs[0].gram))
    if not any(gram is not None and gram.any() for gram in grams):
        grams.append(None)
    for gram in grams:
        compete = setting.group is None and (setting.method == "sparsegpt" or gram is None)
        for parts in (1, 2) if compete and len(weight) % 2 == 0 else (1,):
            masks = [_expected(part, gram, setting) for part in weight.chunk(parts)]
            yield torch.cat(masks), parts
            if parts == 2:  # gate and up may alternate, as in gpt-oss
                mixed = torch.empty_like(weight, dtype=torch.bool)
                mixed[0::2] = _expected(weight[0::2], gram, setting)
                mixed[1::2] = _expected(weight[1::2], gram, setting)
                yield mixed, parts


def _expected(weight: Tensor, gram: Tensor | None, setting: Setting) -> Tensor:
    if gram is None:
        return magnitude(weight, setting.group)
    return {"wanda": wanda, "sparsegpt": sparsegpt}[setting.method](weight, gram, setting.group)


def _zeros_problem(found: nn.Module, changed: list[str], pruned: Pruned) -> list[str]:
    """Whether transformers loads as many zeros as were recorded."""
    loaded = sum(int((found.get_parameter(name) == 0).sum()) for name in changed)
    recorded = sum(int(str(record["zeros"])) for record in pruned.records)
    if loaded == recorded:
        return []
    return [f"transformers loads {loaded:,} zeros in what was changed, but {recorded:,} are recorded"]


def in_kinds(names: Sequence[str]) -> list[str]:
    """The names with their numbers as stars, each once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)|\[\d+\]", "*", name).removesuffix(".weight") for name in names))
