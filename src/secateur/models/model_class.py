"""The transformers class that a configuration is of: a causal language model, alone or inside a vision-language one."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from secateur.errors import ModelError

WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of classes end whose models continue text."""


def model_class(config: PreTrainedConfig) -> Any:
    """What ``from_config`` and ``from_pretrained`` of a model of this configuration are taken from. Raises ``ModelError``
    when transformers has no causal language model for it.

    ``AutoModelForCausalLM``; else ``AutoModelForImageTextToText`` (Qwen2.5-VL, Mistral 3, SmolVLM ...); else the class
    that the configuration names, for text models cut out of larger ones that no automatic class knows (Emu3, Mllama).
    """
    for automatic in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in automatic._model_mapping:
            return automatic
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if named is not None and name.endswith(WRITERS) and named.config_class is type(config):
            return named
    raise ModelError(
        f"transformers has no causal language model for {type(config).__name__} (model_type {config.model_type!r}); Secateur "
        "works on decoder-only models."
    )


def from_config(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A new model of this configuration. Raises what ``model_class`` and the model's own code raise."""
    chosen = model_class(config)
    if issubclass(chosen, PreTrainedModel):
        return chosen._from_config(config, dtype=dtype)
    return chosen.from_config(config, dtype=dtype, trust_remote_code=False)
