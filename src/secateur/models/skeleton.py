"""A model whose weights stay on disk: the module tree without storage, filled one block at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.errors import ModelError
from secateur.models.checkpoint import Checkpoint
from secateur.models.configuration import empty_model
from secateur.models.experts import experts_at, take_over_experts
from secateur.models.stored import Place, StoredParameters
from secateur.models.structure import Linear, find_blocks, find_linears, linear_at, refuse_unsupported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Skeleton:
    """A causal LM on the meta device, with the means to bring in its blocks.

    ``dtype`` is what blocks compute in; ``None`` takes the checkpoint's own. Parameters that the model insists on having
    in float32 are, as when transformers loads it. Raises ``ModelError`` for models of an unsupported kind, and for
    weights that the model needs but the checkpoint lacks.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.checkpoint = Checkpoint(folder)
        self.device = torch.device(device)
        self.dtype = dtype or self.checkpoint.dtype()
        self.model = empty_model(folder, self.dtype)
        self.model.eval()
        refuse_unsupported(self.model)
        take_over_experts(self.model)
        self.prefix, self.blocks = find_blocks(self.model)
        self.stored = StoredParameters(self.checkpoint, self.model)
        config = self.model.config.get_text_config().to_dict()
        self._heads = {
            count for key, count in config.items() if isinstance(count, int) and "head" in key and "dim" not in key
        }
        self._dtypes = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}
        self._dtypes |= wider_dtypes(self.model, self.dtype)
        self._refuse_incomplete()

    def _refuse_incomplete(self) -> None:
        """Raise ``ModelError`` for parameters that nothing stored gives."""
        ignored = self.model._keys_to_ignore_on_load_missing or ()
        missing = [
            name
            for name, _ in self.model.named_parameters()
            if name not in self.stored and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if missing:
            raise ModelError(
                f"The checkpoint {self.checkpoint.folder} lacks {len(missing)} of the weights of {type(self.model).__name__}, "
                f"the first being {missing[0]!r}. Its config.json and its weight files do not belong together."
            )

    def linears(self, index: int) -> list[Linear]:
        """The linears of block ``index``; their modules hold weights only while the block is loaded. One whose weight a
        block before has too is not among them."""
        found = find_linears(self.blocks[index], f"{self.prefix}.{index}", index, self._heads)
        return [linear for linear in found if self._first_block(linear.weight.parameter) in (index, None)]

    def weight(self, linear: Linear) -> Tensor:
        """The weight ``[out, in]`` of a linear, on the CPU, in the dtype it is stored in."""
        return linear.as_rows(self.stored.read(linear.weight))

    def _first_block(self, parameter: str) -> int | None:
        """The first of the blocks that have the parameter, under whatever name; ``None`` for none."""
        start = f"{self.prefix}."
        names = [name for name in self.stored.names_of(parameter) if name.startswith(start)]
        return min((int(name.removeprefix(start).partition(".")[0]) for name in names), default=None)

    def head(self) -> Linear:
        """The output head, as a linear of the block after the last. Raises ``ModelError`` when it cannot be pruned."""
        names = self._head_names()
        if not names or len(self.stored.names_of(f"{names[0]}.weight")) > 1:
            raise ModelError(
                f"The head of {type(self.model).__name__} ({names[0] if names else 'none'}) is tied to its input embeddings: "
                "pruning one would prune the other. Leave pruning.head false."
            )
        return linear_at(names[0], len(self.blocks), self.model.get_submodule(names[0]))

    def load_head(self) -> None:
        self._fill([name for name in self._dtypes if name.startswith(f"{self.head().name}.")], self.stored)

    def load_block(
        self, index: int, source: StoredParameters | None = None, before: StoredParameters | None = None
    ) -> nn.Module:
        """Bring block ``index`` onto the device, its weights read from ``source`` or the model's own checkpoint; those that
        a block before has too from ``before``."""
        source = source or self.stored
        names = [name for name in self._dtypes if name.startswith(f"{self.prefix}.{index}.")]
        shared = [name for name in names if self._first_block(name) != index]
        self._fill(shared, before or source)
        self._fill([name for name in names if name not in shared], source)
        block = self.blocks[index].to(self.device)
        self._bind(block)
        return block

    def drop_block(self, index: int) -> None:
        """Let go of the weights of block ``index``."""
        _empty(self.blocks[index].modules())
        self._bind(self.blocks[index])
        self.stored.forget()

    def _bind(self, block: nn.Module) -> None:
        for module in block.modules():
            for experts in experts_at(module):
                experts.bind()

    def load_outside(self) -> None:
        """Bring in what lies before and beside the blocks: embeddings, norms, rotary tables; not the head."""
        excluded = (f"{self.prefix}.", *(f"{name}." for name in self._head_names()))
        self._fill([name for name in self._dtypes if not name.startswith(excluded)], self.stored)
        for module in self._modules_outside():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(self.device), name not in module._non_persistent_buffers_set)

    def drop_outside(self) -> None:
        """Let go of the weights that ``load_outside`` brought in."""
        _empty(self._modules_outside())

    def _head_names(self) -> list[str]:
        head = self.model.get_output_embeddings()
        return [name for name, module in self.model.named_modules() if module is head]

    def _modules_outside(self) -> list[nn.Module]:
        inside = set(self.blocks.modules())
        return [module for module in self.model.modules() if module not in inside]

    def _fill(self, names: list[str], source: StoredParameters) -> None:
        """Put stored tensors in their places; parameters that are tied with each other are one."""
        filled: dict[str, Tensor] = {}
        for name in names:
            if name not in self.stored:
                continue
            owner = self.stored.owner(name)
            if owner not in filled:
                tensor = source.read(Place(owner))
                filled[owner] = tensor.to(self.device, self._dtypes[name] if tensor.is_floating_point() else None)
            place, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(place)
            if leaf in module._buffers:
                module._buffers[leaf] = filled[owner]
            else:
                module.register_parameter(leaf, nn.Parameter(filled[owner], requires_grad=False))


def wider_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The parameters and buffers that a model computed in ``dtype`` has in another type, as transformers loads it."""
    plan = model._get_dtype_plan(dtype)
    return {
        name: wider
        for pattern, wider in reversed(plan.items())  # the first that fits counts
        for name in model.state_dict()
        if re.search(pattern.replace("*", ".*"), name)
    }


def _empty(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
