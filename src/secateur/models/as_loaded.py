"""What transformers makes of a model folder, a few stored tensors at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from secateur.models.checkpoint import Checkpoint
from secateur.models.configuration import empty_model


class AsLoaded:
    """Loads parts of the model of ``folder`` by the very code that ``from_pretrained`` loads it with."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint(folder)
        self._model = empty_model(folder, self.checkpoint.dtype())

    def parameters(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The parameters that the stored tensors ``keys`` become, by name, in the dtype that most are stored in."""
        mapping: Any = get_model_conversion_mapping(self._model)
        config = LoadStateDictConfig(dtype=self._model.dtype, weight_mapping=mapping, device_map={"": "cpu"})
        stored = {key: self.checkpoint.read(key) for key in keys}
        with _without_progress():
            convert_and_load_state_dict_in_model(self._model, stored, config)
        loaded = {
            name: parameter.detach() for name, parameter in self._model.named_parameters() if not parameter.is_meta
        }
        for name, parameter in loaded.items():
            place, _, leaf = name.rpartition(".")
            empty = nn.Parameter(parameter.to("meta"), requires_grad=False)
            self._model.get_submodule(place).register_parameter(leaf, empty)
        return loaded


@contextmanager
def _without_progress() -> Iterator[None]:
    """No bar of transformers' for every few tensors."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
