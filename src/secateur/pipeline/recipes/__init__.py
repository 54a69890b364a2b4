"""The recipes that come with the package."""

from __future__ import annotations

from importlib.resources import files


def recipe_names() -> dict[str, str]:
    """Bundled recipes by name, with the first comment line of each."""
    found = {}
    for path in sorted(files(__name__).iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            found[path.name.removesuffix(".yaml")] = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return found


def recipe_text(name: str) -> str:
    """The YAML of a bundled recipe."""
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
