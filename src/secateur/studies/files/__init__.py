"""The studies that come with the package."""

from __future__ import annotations

from importlib.resources import files


def study_names() -> dict[str, str]:
    """Bundled studies by name, with the first comment line of each."""
    found = {}
    for path in sorted(files(__name__).iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            found[path.name.removesuffix(".yaml")] = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return found


def study_text(name: str) -> str:
    """The YAML of a bundled study."""
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
