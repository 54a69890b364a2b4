"""A model's parameters as its checkpoint stores them: read and written under the names and shapes they have in the model.

transformers renames, splits and fuses stored tensors when it loads them. The same conversions are used here, both ways,
so that what is read is what ``from_pretrained`` gives, and what is written keeps the stored names and layout
(docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from secateur.errors import ModelError
from secateur.models.checkpoint import Checkpoint

Parameters = dict[str, Tensor]
"""Tensors by the names they have in the model, or by those they are stored under."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in the model's parameter of this name, or in a ``part`` of it, by its index."""

    parameter: str
    part: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Stored tensors that become parameters together: one under another name, or several by a ``converter``.

    ``sources``: stored name to the converter's pattern that it matches, in the order in which transformers collects
    them. ``first``: the name by which transformers calls the group. ``copies``: further stored names of the same parameter, which transformers does not load.
    """

    first: str
    converter: WeightConverter | None = None
    sources: dict[str, str] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        return next(iter(self.sources))


class StoredParameters:
    """The parameters and buffers of ``model`` (on the meta device) in ``checkpoint``.

    ``strays``: stored tensors that the model has no place for, and those stored a second time under a name that
    transformers does not load. Raises ``ModelError`` when stored tensors do not fit the model.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.checkpoint = self._dense = checkpoint
        self.model = model
        self._renamings: list[WeightRenaming] = []
        self._groups: dict[str, _Group] = {}
        self.strays: list[str] = []
        self._by_parameter: dict[str, _Group] = {}
        self._collect()
        self._fit()
        self._tied = _tied_with(model)
        self._converted: dict[str, Parameters] = {}
        self._staged: dict[str, Parameters] = {}

    def of_copy(self, folder: Path) -> StoredParameters:
        """The same parameters in a copy of the checkpoint."""
        other = object.__new__(StoredParameters)
        other.__dict__ |= self.__dict__ | {"checkpoint": Checkpoint(folder), "_converted": {}, "_staged": {}}
        return other

    def copy_to(self, folder: Path) -> StoredParameters:
        """Copy the whole checkpoint; its parameters there."""
        self.checkpoint.copy_to(folder)
        return self.of_copy(folder)

    def _collect(self) -> None:
        """Find a group for every stored tensor, by the rules by which transformers loads them."""
        transforms = get_model_conversion_mapping(self.model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        state, base = self.model.state_dict(), self.model.base_model_prefix
        for key in sorted(self.checkpoint.names, key=dot_natural_key):
            name, pattern = rename_source_key(key, self._renamings, converters, base, state)
            if name not in state and key in state:
                name, pattern = rename_source_key(key, [], [], base, state)
            if name not in state:
                self.strays.append(key)
                continue
            group = self._groups.setdefault(name, _Group(name, by_pattern[pattern] if pattern else None))
            if group.sources and group.converter is None:
                group.copies.append(key)
                self.strays.append(key)
            else:
                group.sources[key] = pattern or key

    def _fit(self) -> None:
        """Find out what becomes of each group. Its shapes must be those that the model asks for."""
        needed = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        for group in self._groups.values():
            empty = {key: torch.empty(self.checkpoint.shape(key), device="meta") for key in group.sources}
            for name, tensor in self._convert(group, empty).items():
                self._by_parameter[name] = group
                if tuple(tensor.shape) != needed.get(name, tuple(tensor.shape)):
                    raise ModelError(
                        f"{group.source} in {self.checkpoint.folder} has the shape {tuple(tensor.shape)}, but config.json "
                        f"asks for {needed[name]}."
                    )

    def _convert(self, group: _Group, stored: Mapping[str, Tensor]) -> Parameters:
        if group.converter is None:
            return {group.first: stored[group.source]}
        converter: Any = deepcopy(group.converter)
        for key, pattern in group.sources.items():
            converter.add_tensor(group.first, key, pattern, stored[key])
        try:
            converted = converter.convert(group.first, model=self.model, config=self.model.config)
        except Exception as error:  # each conversion fails its own way
            raise ModelError(
                f"{group.source} and what is stored with it in {self.checkpoint.folder} cannot become "
                f"{group.first}: {' '.join(str(error).split())[:200]}. The checkpoint and its config.json do not belong together."
            ) from error
        return {name: _alone(tensor) for name, tensor in converted.items()}

    def _revert(self, group: _Group, parameters: Parameters) -> Parameters:
        """What the parameters of a group are stored as."""
        if group.converter is None:
            return dict.fromkeys((group.source, *self._equal_copies(group)), parameters[group.first])
        reverse: Any = group.converter.reverse_transform()
        renamed = group.first
        for name, tensor in parameters.items():
            renamed, pattern = reverse.rename_source_key(name)
            if pattern is None:
                raise ModelError(
                    f"transformers cannot store {name} of {type(self.model).__name__} the way it was stored."
                )
            reverse.add_tensor(renamed, name, pattern, tensor)
        reverted = reverse.convert(renamed, model=self.model, config=self.model.config)
        stored = {}
        for key in group.sources:
            middle = apply_renamings(key, self._renamings)
            names = [
                name
                for name in reverted
                if name == middle or name.endswith(f".{middle}") or middle.endswith(f".{name}")
            ]
            if len(names) != 1:
                raise ModelError(
                    f"transformers has no way back from {group.first} to {key} in {self.checkpoint.folder}."
                )
            stored[key] = _alone(reverted[names[0]])
        return stored

    def _equal_copies(self, group: _Group) -> list[str]:
        """The copies that hold the same numbers in the dense checkpoint: they are written too."""
        return [key for key in group.copies if same_bits(self._dense.read(key), self._dense.read(group.source))]

    def __contains__(self, parameter: str) -> bool:
        """Whether the parameter is stored, under its own name or under one it is tied to."""
        return self.owner(parameter) in self._by_parameter

    def owner(self, parameter: str) -> str:
        """The name under which the parameter is stored: its own, else that of a parameter it is tied to."""
        if parameter in self._by_parameter:
            return parameter
        return next((other for other in self._tied.get(parameter, ()) if other in self._by_parameter), parameter)

    def names_of(self, parameter: str) -> list[str]:
        """All names of a parameter: its own, and those of the parameters that it is tied to."""
        return [parameter, *self._tied.get(parameter, ())]

    def key(self, parameter: str) -> str:
        """The stored tensor that is the parameter; the parameter's own name if it is made of parts of several."""
        group = self._by_parameter[self.owner(parameter)]
        return parameter if group.converter else group.source

    def keys(self, parameter: str, copies: bool = False) -> list[str]:
        """The stored tensors that the parameter is made of; others may be made of them too. ``copies``: also those
        that transformers does not load, if they hold the same numbers."""
        group = self._by_parameter[self.owner(parameter)]
        return [*group.sources, *(self._equal_copies(group) if copies else ())]

    def read(self, place: Place) -> Tensor:
        """A tensor on the CPU, in the dtype it is stored in. What conversions gave is kept until ``forget``."""
        name = self.owner(place.parameter)
        group = self._by_parameter[name]
        if group.converter is None:
            return self.checkpoint.read(group.source, place.part)
        if group.first not in self._converted:
            stored = {key: self.checkpoint.read(key) for key in group.sources}
            self._converted[group.first] = self._convert(group, stored)
        return self._converted[group.first][name][place.part].clone()

    def forget(self) -> None:
        """Let go of what conversions gave."""
        self._converted.clear()

    def write(self, place: Place, tensor: Tensor) -> None:
        """Put a tensor in its place, in the dtype it is stored in; surely in the files only after ``flush``."""
        name = self.owner(place.parameter)
        group = self._by_parameter[name]
        if group.converter is None and not place.part:
            self.checkpoint.patch(self._revert(group, {name: tensor}))
            return
        if group.first not in self._staged:
            self._staged[group.first] = self._stage(group)
        whole = self._staged[group.first][name]
        if whole[place.part].shape != tensor.shape:
            raise ModelError(
                f"{place} has the shape {tuple(whole[place.part].shape)}; it cannot become {tuple(tensor.shape)}."
            )
        whole[place.part] = tensor.to(whole)

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        while self._staged:
            first, parameters = self._staged.popitem()
            self.checkpoint.patch(self._revert(self._groups[first], parameters))
        self.checkpoint.sync()

    def _stage(self, group: _Group) -> Parameters:
        """The group's parameters to be changed. Raises ``ModelError`` unless they can be stored again bit by bit."""
        stored = {key: self._dense.read(key) for key in group.sources}
        parameters = {name: tensor.clone() for name, tensor in self._convert(group, stored).items()}
        again = self._revert(group, parameters) if group.converter else {}
        if not all(same_bits(tensor, stored[key]) for key, tensor in again.items()):
            raise ModelError(
                f"{group.source} becomes {group.first} by a conversion that does not give the stored numbers back, so a "
                "pruned one cannot be stored. Leave it dense with pruning.skip."
            )
        return parameters


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))))


def _alone(tensor: Tensor | list[Tensor]) -> Tensor:
    """Conversions give a tensor by itself or in a list."""
    return tensor[0] if isinstance(tensor, list) else tensor


def _tied_with(model: PreTrainedModel) -> dict[str, list[str]]:
    """By name, the other names of one parameter."""
    classes: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        classes.setdefault(source, {source}).add(target)
    return {name: sorted(names - {name}) for names in classes.values() for name in names}
