"""The store: digests, atomic folders, resumption after kill, and disks that fill up."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import SLOWLY, wait_for_a_line
from secateur.errors import StoreError
from secateur.pipeline import store
from secateur.pipeline.store import build, check_space, digest_of, finished, partial_folder, read_manifest

SPEC = {"stage": "test", "n": 1}


def fill(folder: Path) -> dict:
    (folder / "data.txt").write_text("hello")
    return {"kind": "test"}


def test_a_folder_is_made_once_with_its_manifest_and_digests(tmp_path):
    final = tmp_path / "out"
    assert build(final, SPEC, fill)
    assert not build(final, SPEC, lambda _: pytest.fail("made twice"))
    manifest = read_manifest(final)
    assert manifest["spec"] == SPEC
    assert manifest["files"] == {"data.txt": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_fails_leaves_no_output_and_goes_on_later(tmp_path):
    final = tmp_path / "out"

    def fail(folder: Path) -> dict:
        (folder / "half").write_text("kept")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        build(final, SPEC, fail)
    assert not final.exists()
    build(final, SPEC, lambda folder: fill(folder) | {"found": (folder / "half").read_text()})
    assert read_manifest(final)["found"] == "kept"


def test_another_spec_is_refused_and_named(tmp_path):
    build(tmp_path / "out", SPEC, fill)
    with pytest.raises(StoreError, match="n was 1, now 2"):
        build(tmp_path / "out", SPEC | {"n": 2}, fill)


def test_somebody_else_s_folder_is_never_touched(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(StoreError, match="was not made by Secateur"):
        build(tmp_path, SPEC, fill)
    assert (tmp_path / "mine").read_text() == "precious"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert build(empty, SPEC, fill)


def test_two_processes_do_not_make_the_same_thing_at_once(tmp_path):
    final = tmp_path / "out"
    partial = partial_folder(final, digest_of(SPEC))
    with FileLock(partial.with_suffix(".lock")), pytest.raises(StoreError, match="Another process is making"):
        build(final, SPEC, fill)
    assert build(final, SPEC, fill)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_a_sentence(tmp_path, code):
    def full(folder: Path) -> dict:
        (folder / "part").write_text("x")
        raise OSError(code, os.strerror(code), str(folder / "weights"))

    with pytest.raises(StoreError, match="run the same command again to go on from there"):
        build(tmp_path / "out", SPEC, full)
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_noticed_beforehand(tmp_path):
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StoreError, match="MiB free"):
        check_space(tmp_path, 2**70)


def test_a_manifest_that_is_not_one_counts_for_nothing(tmp_path):
    (tmp_path / store.MANIFEST).write_text("{")
    assert read_manifest(tmp_path) is None
    (tmp_path / store.MANIFEST).write_text(json.dumps([1]))
    assert read_manifest(tmp_path) is None
    assert not finished(tmp_path / "nowhere", SPEC)


ARGUMENTS = ["--method", "sparsegpt", "--set", "evaluation.enabled=false", "--set", "calibration.samples=24"]
ARGUMENTS += ["--set", "calibration.generation.batch_size=2"]


@pytest.fixture(scope="module")
def calm(llama, tmp_path_factory):
    """The manifest of a run that was let be."""
    place = tmp_path_factory.mktemp("calm")
    command = [sys.executable, "-m", "secateur", "prune", str(llama), *ARGUMENTS, "--store", str(place), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["manifest"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", ["generations.journal", "pruning.jsonl"])
def test_stopped_at_any_stage_the_same_command_goes_on_to_the_same_result(llama, calm, tmp_path, stage, stop):
    """Really killed, in the middle of generating or of pruning; the result is that of a run that was let be."""
    arguments = ["prune", str(llama), *ARGUMENTS]
    place = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments, "--store", str(place)], stderr=subprocess.PIPE, text=True
    )
    wait_for_a_line(process, place, f"*/.*.partial/{stage}")
    process.send_signal(stop)
    _, printed = process.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again" in printed
        assert "Traceback" not in printed
    assert not list(place.glob("pruned/[!.]*"))
    command = [sys.executable, "-m", "secateur", *arguments, "--store", str(place), "--json"]
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    one, other = calm, json.loads(resumed.stdout)["manifest"]
    assert one["spec_digest"] == other["spec_digest"]
    assert one["files"]["model.safetensors"] == other["files"]["model.safetensors"]
    assert one["calibration"]["set_digest"] == other["calibration"]["set_digest"]
    assert not list(place.glob("*/.*"))


WAITING = """
import sys, time
from pathlib import Path
from secateur.pipeline.store import build, waiting
place = Path(sys.argv[1])
def make(folder):
    (place / "begun").touch()
    while not (place / "go").exists():
        time.sleep(0.02)
    if sys.argv[2] == "fails":
        sys.exit(3)
    return {"kind": "test", "by": sys.argv[2]}
with waiting(lambda text: ((place / ("told-" + sys.argv[2])).write_text(text))):
    print(build(place / "out", {"stage": "test"}, make))
"""


def until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("first", "made"), [("one", ["True", "False"]), ("fails", ["", "True"])])
def test_a_second_process_waits_and_uses_what_the_first_made_or_goes_on_where_it_failed(tmp_path, first, made):
    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WAITING, str(tmp_path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    one = start(first)
    until(tmp_path / "begun")
    other = start("other")
    until(tmp_path / "told-other")
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0].strip() for process in (one, other)] == made
    assert read_manifest(tmp_path / "out")["by"] == ("other" if first == "fails" else "one")
    assert "Another process is making" in (tmp_path / "told-other").read_text()
    assert "waiting for it" in (tmp_path / "told-other").read_text()
    assert not list(tmp_path.glob(".*"))
