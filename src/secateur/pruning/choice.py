"""Which linears of the blocks are pruned, and which stay dense although nobody asked for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from secateur.errors import UsageError
from secateur.models.skeleton import Skeleton
from secateur.models.structure import Linear

LARGE = 0.05
"""Share of a block's parameters from which on a weight that cannot be pruned is worth a sentence."""


@dataclass(frozen=True)
class LeftDense:
    """Weights that stay dense, by name, and why: the end of a sentence that begins with them."""

    names: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        listed = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        count = "1 weight stays" if len(self.names) == 1 else f"{len(self.names):,} weights stay"
        return f"{count} dense, {self.reason}: {listed}."


@dataclass(frozen=True)
class Choice:
    """``linears`` that are pruned, in order, and those ``left`` dense."""

    linears: tuple[Linear, ...]
    left: tuple[LeftDense, ...]


def choose_linears(
    skeleton: Skeleton, skip: Sequence[str] = (), include: Sequence[str] = (), uncalled: Collection[str] = ()
) -> Choice:
    """The linears of all blocks without those that match a glob of ``skip``, that steer (unless they match one of
    ``include``), or that the model never calls (``uncalled``). Raises ``UsageError`` when a glob matches nothing, or
    nothing is left."""
    linears = [linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)]
    _refuse_idle(skip, linears, "skip")
    _refuse_idle(include, [linear for linear in linears if linear.steers], "include", " that stays dense by itself")
    wanted = [linear for linear in linears if not _matches(linear.name, skip)]
    steering = [linear.name for linear in wanted if linear.steers and not _matches(linear.name, include)]
    kept = [linear for linear in wanted if linear.name not in {*steering, *uncalled}]
    if not kept:
        raise UsageError(
            f"pruning.skip {list(skip)} leaves no linear to prune."
            if skip
            else f"{type(skeleton.model).__name__} has no linear in its blocks that Secateur can prune."
        )
    idle = [linear.name for linear in wanted if linear.name in uncalled and linear.name not in steering]
    left = [
        LeftDense(tuple(steering), "because their outputs choose or weigh and are no features (pruning.include)"),
        LeftDense(tuple(idle), "because the model does not call them on text"),
        LeftDense(tuple(_others(skeleton)), "because they are no linears that Secateur can take apart"),
    ]
    return Choice(tuple(kept), tuple(one for one in left if one.names))


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _refuse_idle(globs: Sequence[str], linears: Sequence[Linear], key: str, more: str = "") -> None:
    for glob in globs:
        if not any(fnmatchcase(linear.name, glob) for linear in linears):
            names = ", ".join(linear.name for linear in linears[:3])
            like = f"they are named like {names}" if names else "there is none"
            raise UsageError(f"pruning.{key} has {glob!r}, which matches no linear{more}; {like}.")


def _others(skeleton: Skeleton) -> list[str]:
    """Large matrices in the blocks that are part of no linear: experts in a layout of their own, embeddings."""
    names = []
    for index, block in enumerate(skeleton.blocks):
        taken = {place.parameter for one in skeleton.linears(index) for place in (one.weight, one.bias) if place}
        large = LARGE * sum(parameter.numel() for parameter in block.parameters())
        for name, module in block.named_modules():
            if isinstance(module, (nn.Conv1d, nn.LayerNorm)):
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                full = f"{skeleton.prefix}.{index}.{name}.{leaf}"
                if parameter.ndim > 1 and parameter.numel() >= large and full not in taken:
                    names.append(full)
    return names
