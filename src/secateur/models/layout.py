"""Which files of a model hold its weights, and which go with them: in a folder, or in a repository on the Hub.

The rule is that of transformers' ``from_pretrained``: the file that config.json names as ``transformers_weights``, else
model.safetensors, else the shards of its index. What else a folder has is told by names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from secateur.errors import ModelError
from secateur.models.config_file import (
    ADAPTER,
    CONFIG,
    NAMED_WEIGHTS,
    base_model,
    content_of,
    is_dangling,
    links_to_nowhere,
    named_weights,
    refuse_adapter,
    why_absent,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

OTHER_WEIGHTS = {
    *(".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".npz"),
    *(".distcp", ".nemo", ".tflite", ".mlmodel", ".pdparams"),
}
OWN_FILES = {"README.md", "manifest.json", "training.json", "pruning.jsonl", "survey.jsonl"}
PARTS = ("additional_chat_templates", "custom_generate")
"""The sub-folders that belong to a model: transformers reads them without being asked to."""

SHARD = re.compile(r"^(?P<set>.+)-\d{5}-of-\d{5}\.safetensors$")
RANK_SHARD = re.compile(r"^shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
VARIANT = re.compile(r"^model\.(?P<name>[^.]+?)(-\d{5}-of-\d{5})?\.safetensors$")
WEIGHT_INDEX = re.compile(r"\.index\.([^.]+\.)?json$|\.index$|\.data-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Layout:
    """The files of a model, by their paths within it. ``weights``: in the order transformers reads them. ``index``: what
    names them, where there are several. ``others``: configuration, tokenizer, licence, templates. ``left_behind``: what
    a copy of the model goes without; sub-folders end in a slash."""

    weights: tuple[str, ...]
    index: str | None
    others: tuple[str, ...]
    left_behind: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """What makes up the model, and is copied whole."""
        return [*self.weights, *([self.index] if self.index else []), *self.others]


def read_layout(folder: Path) -> Layout:
    """The layout of a folder. Raises ``ModelError`` when transformers would load no weights from it, or others than
    those that Secateur reads."""
    place, names = f"The model folder {folder}", _names_in(folder)
    refuse_adapter(names, place, base_model(content_of(folder / ADAPTER)))
    ranks = sorted(name for name in names if RANK_SHARD.match(name))
    if ranks:
        raise ModelError(
            f"{place} holds the shards of a distributed checkpoint ({_listed(ranks)}), which transformers would load and "
            "Secateur does not read. Save the model again with save_pretrained."
        )
    named = named_weights(content_of(folder / CONFIG))
    _refuse_dangling(folder, [named] if isinstance(named, str) else [WEIGHTS, INDEX])
    opened = opened_file({*names, *_named_in_subfolder(folder, named)}, named, place)
    dangling = links_to_nowhere(folder)
    if not opened.endswith(".json"):
        return _sorted(names, (opened,), None, dangling)
    index, place = (folder / opened).read_bytes(), f"{folder / opened}"
    shards = shards_of(index, place)
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{place} names {shard}, but {why_absent(folder / shard)}; download it again.")
    refuse_without_metadata(index, place)
    return _sorted(names, tuple(shards), opened, dangling)


def repository_layout(names: Collection[str], opened: str, index: bytes | None, place: str) -> Layout:
    """The layout of a repository on the Hub with the files ``names``. ``opened``: as ``opened_file`` gives it; ``index``:
    its content, if it is one. Raises ``ModelError`` when shards are missing."""
    if index is None:
        return _sorted(names, (opened,), None)
    where = f"{opened} of {place[0].lower()}{place[1:]}"
    shards = shards_of(index, where)
    absent = [shard for shard in shards if shard not in names]
    if absent:
        raise ModelError(f"{where} names {_listed(absent)}, but the repository has no such file.")
    refuse_without_metadata(index, where)
    return _sorted(names, tuple(shards), opened)


def opened_file(names: Collection[str], named: Any, place: str) -> str:
    """The file among ``names`` that transformers opens for the weights: one with tensors, or an index (it ends in .json).

    ``named``: what config.json says under ``transformers_weights``, or ``None``. ``place``: what the model is called in
    errors. Raises ``ModelError`` that names what there is, when that is nothing transformers would open.
    """
    if named is not None:
        return _named_file(names, named, place)
    found = next((name for name in (WEIGHTS, INDEX) if name in names), None)
    if found is None:
        raise ModelError(f"{place} has no {WEIGHTS} and no {INDEX}; {_instead(names)}")
    return found


def shards_of(index: bytes, place: str) -> list[str]:
    """The files that an index names, in the order transformers reads them. Raises ``ModelError`` for one that is damaged, or
    whose files lie outside of the model."""
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
        paths = [PurePosixPath(shard) for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"The index {place} is damaged ({error!r}); download it again.") from error
    if not shards:
        raise ModelError(f"The index {place} names no files; download it again.")
    for shard, path in zip(shards, paths, strict=True):
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
            raise ModelError(f"The index {place} names {shard}, which is no safetensors file inside the model.")
    return shards


def refuse_without_metadata(index: bytes, place: str) -> None:
    """Raise ``ModelError`` for an index that transformers does not load."""
    if not isinstance(json.loads(index).get("metadata"), dict):
        raise ModelError(
            f'The index {place} has no "metadata", without which transformers does not load it; add "metadata": {{}} to '
            "it, or download it again."
        )


def is_weights(name: str) -> bool:
    """Whether a file of this name holds a model's weights in some format, or an index of them."""
    path = PurePosixPath(name)
    return path.suffix in {*OTHER_WEIGHTS, ".safetensors"} or bool(WEIGHT_INDEX.search(path.name))


def _named_file(names: Collection[str], named: Any, place: str) -> str:
    path = PurePosixPath(named) if isinstance(named, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or not _is_loadable(path.name):
        raise ModelError(
            f"{place} says in {CONFIG} that its weights are {named!r} ({NAMED_WEIGHTS}), which is neither a safetensors file "
            "nor the index of several inside the model."
        )
    if str(path) not in names:
        raise ModelError(
            f"{place} says in {CONFIG} that its weights are {named!r} ({NAMED_WEIGHTS}), but has no such file; download it "
            f"again, or take {NAMED_WEIGHTS} out."
        )
    return str(path)


def _is_loadable(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _instead(names: Collection[str]) -> str:
    """What there is of weights instead of those that transformers loads, and what to do."""
    top = sorted(name for name in names if "/" not in name)
    tensors = [name for name in top if name.endswith(".safetensors")]
    variants = [(found["name"], name) for name in tensors if (found := VARIANT.match(name))]
    shards = [name for name in tensors if SHARD.match(name)]
    consolidated = [name for name in tensors if name.startswith("consolidated")]
    if variants:
        variant, example = variants[0]
        return (
            f"it has the variant {variant!r} ({example}), which transformers loads only when asked to. Save it again without: "
            f"AutoModelForCausalLM.from_pretrained(FOLDER, variant={variant!r}).save_pretrained(NEW)."
        )
    if consolidated:
        return (
            f"it has {_listed(consolidated)}, the weights under the names of their makers' own program, which transformers "
            "does not load. Take the version of the model that is made for transformers, or convert it."
        )
    if shards:
        return (
            f"it has the shards {_listed(shards)}, but transformers does not load shards without their index. Download the "
            "index too, or save the model again with save_pretrained."
        )
    if tensors:
        return (
            f"it has {_listed(tensors)}, but transformers does not load files of other names. Rename it to {WEIGHTS} if it is "
            f'the whole model, or name it in {CONFIG}: "{NAMED_WEIGHTS}": "{tensors[0]}".'
        )
    others = [name for name in top if PurePosixPath(name).suffix in OTHER_WEIGHTS]
    if others:
        return (
            f"it has {_listed(others)}, which Secateur does not read. Save it again with save_pretrained (safetensors)."
        )
    return "it has no weights. Download them, or save it again with save_pretrained (safetensors)."


def _names_in(folder: Path) -> set[str]:
    """The files of a folder and of the sub-folders that belong to it; other sub-folders by their name and a slash. Links
    that lead nowhere are none."""
    names: set[str] = set()
    for path in folder.iterdir():
        if path.is_file():
            names.add(path.name)
        elif path.is_dir() and path.name in PARTS:
            names |= {inner.relative_to(folder).as_posix() for inner in path.rglob("*") if inner.is_file()}
        elif path.is_dir():
            names.add(f"{path.name}/")
    return names


def _named_in_subfolder(folder: Path, named: Any) -> Iterator[str]:
    """The file that config.json names, where it lies in a sub-folder."""
    if isinstance(named, str) and "/" in named and not named.startswith("/") and (folder / named).is_file():
        yield str(PurePosixPath(named))


def _refuse_dangling(folder: Path, names: Sequence[str]) -> None:
    """Raise ``ModelError`` when none of the files that transformers would open is there, and one is a link that leads
    nowhere."""
    if any((folder / name).is_file() for name in names):
        return
    for path in (folder / name for name in names):
        if is_dangling(path):
            raise ModelError(
                f"The weights {path} cannot be read: {why_absent(path)}. Download the model again, or copy it with what its "
                "links lead to."
            )


def _sorted(
    names: Collection[str], weights: tuple[str, ...], index: str | None, dangling: Sequence[str] = ()
) -> Layout:
    """A layout from all names: hidden files and those of an earlier run are neither copied nor worth a word."""
    others, left = [], list(dangling)
    for name in sorted({*names} - {*weights, index}):
        head, slash, _ = name.partition("/")
        if slash and head not in PARTS:
            left.append(f"{head}/")
        elif not slash and is_weights(name):
            left.append(name)
        else:
            others.append(name)
    if any(name.startswith("consolidated") for name in left) and "params.json" in others:
        others.remove("params.json")  # describes those weights, and nothing else
        left.append("params.json")
    kept, gone = ([name for name in found if _is_the_models(name)] for found in (others, sorted(set(left))))
    return Layout(weights, index, tuple(kept), tuple(gone))


def _is_the_models(name: str) -> bool:
    """Whether a file is neither hidden nor one that Secateur writes itself."""
    return not name.startswith(".") and name not in OWN_FILES


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
