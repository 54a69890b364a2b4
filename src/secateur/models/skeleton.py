"""A model whose weights stay on disk: the module tree without storage, filled one block at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from secateur.errors import ModelError
from secateur.models.checkpoint import Checkpoint
from secateur.models.experts import split_experts, stored_names
from secateur.models.structure import Linear, find_blocks, find_linears, refuse_unsupported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Skeleton:
    """A causal LM on the meta device, with the means to bring in its blocks.

    ``dtype`` is what blocks compute in; ``None`` takes the checkpoint's own. Raises ``ModelError`` for models of an
    unsupported kind, and for weights that the model needs but the checkpoint lacks.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.checkpoint = Checkpoint(folder)
        self.device = torch.device(device)
        self.dtype = dtype or self.checkpoint.dtype()
        self.model = empty_model(folder, self.dtype)
        self.model.eval()
        refuse_unsupported(self.model)
        split_experts(self.model)
        self.prefix, self.blocks = find_blocks(self.model)
        self.keys = self._match_names()

    def _match_names(self) -> dict[str, str]:
        """Model parameter and buffer names to checkpoint names; tied parameters need no entry of their own."""
        base = f"{self.model.base_model_prefix}."
        spellings = (str, lambda stored: stored.removeprefix(base), lambda stored: base + stored)
        keys, missing = {}, []
        # The head is never brought in, and some checkpoints store it under an older name.
        needless = tied_names(self.model) | {f"{name}.weight" for name in self._head_names()}
        required = {name for name, _ in self.model.named_parameters()}
        for name, parameter in self.model.state_dict().items():
            candidates = (f(stored) for stored in stored_names(name) for f in spellings)
            found = next((candidate for candidate in candidates if candidate in self.checkpoint), None)
            if found:
                keys[name] = found
                stored, expected = self.checkpoint.shape(found), tuple(parameter.shape)
                if name in required and stored != expected:
                    raise ModelError(
                        f"{found} in {self.checkpoint.folder} has the shape {stored}, but config.json asks for {expected}."
                    )
            elif name in required and name not in needless:
                missing.append(name)
        if missing:
            raise ModelError(
                f"The checkpoint {self.checkpoint.folder} lacks {len(missing)} of the weights of {type(self.model).__name__}, "
                f"the first being {missing[0]!r}. Its config.json and its weight files do not belong together."
            )
        return keys

    def linears(self, index: int) -> list[Linear]:
        """The linears of block ``index``; their modules hold weights only while the block is loaded."""
        return find_linears(self.blocks[index], f"{self.prefix}.{index}", index)

    def head(self) -> Linear:
        """The output head, as a linear of the block after the last. Raises ``ModelError`` when it cannot be pruned."""
        names = self._head_names()
        if not names or tied_names(self.model) & {f"{name}.weight" for name in names}:
            raise ModelError(
                f"The head of {type(self.model).__name__} ({names[0] if names else 'none'}) is tied to its input embeddings: "
                "pruning one would prune the other. Leave pruning.head false."
            )
        if f"{names[0]}.weight" not in self.keys:
            raise ModelError(f"The checkpoint {self.checkpoint.folder} has no weights under {names[0]!r} to prune.")
        module = dict(self.model.named_modules())[names[0]]
        return Linear(names[0], len(self.blocks), module, transposed=False)

    def load_head(self, source: Checkpoint | None = None) -> None:
        self._fill([name for name in self.keys if name.startswith(f"{self.head().name}.")], source or self.checkpoint)

    def load_block(self, index: int, source: Checkpoint | None = None) -> nn.Module:
        """Bring block ``index`` onto the device, its weights read from ``source`` or the model's own checkpoint."""
        prefix = f"{self.prefix}.{index}."
        self._fill([name for name in self.keys if name.startswith(prefix)], source or self.checkpoint)
        return self.blocks[index].to(self.device)

    def drop_block(self, index: int) -> None:
        """Let go of the weights of block ``index``."""
        _empty(self.blocks[index].modules())

    def load_outside(self) -> None:
        """Bring in what lies before and beside the blocks: embeddings, norms, rotary tables; not the head."""
        excluded = (f"{self.prefix}.", *(f"{name}." for name in self._head_names()))
        self._fill([name for name in self.keys if not name.startswith(excluded)], self.checkpoint)
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

    def _fill(self, names: list[str], source: Checkpoint) -> None:
        state = {}
        for name in names:
            tensor = source.read(self.keys[name])
            state[name] = tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
        self.model.load_state_dict(state, strict=False, assign=True)
        self.model.requires_grad_(False)


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder. Raises ``ModelError`` when transformers does not know it."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each configuration class checks its values its own way
        raise ModelError(
            f"transformers cannot read {folder / 'config.json'}: {' '.join(str(error).split())[:300]}"
        ) from error


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of ``folder``'s config.json with parameters on the meta device and real buffers."""
    config = read_config(folder)
    try:
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(
            f"transformers has no causal language model for {type(config).__name__} ({folder}); Secateur prunes "
            f"decoder-only models. It says: {' '.join(str(error).split())[:160]}"
        ) from error
    except (TypeError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"{folder / 'config.json'} describes no model that can be built: {error!r}.") from error


def tied_names(model: PreTrainedModel) -> set[str]:
    """Names of parameters that are another parameter under a second name, and need not be stored."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    return set(getattr(model, "_tied_weights_keys", None) or ())


def _empty(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
