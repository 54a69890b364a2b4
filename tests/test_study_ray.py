"""A study on a real Ray cluster of two nodes on this machine: the same results, though a worker dies."""

from __future__ import annotations

import os
import signal

import pytest

from secateur.errors import UsageError
from secateur.pipeline.reporter import Reporter
from secateur.studies import run as run_module
from secateur.studies.plan import plan_study
from secateur.studies.pool import InlinePool
from secateur.studies.ray_pool import TRIES, RayPool, shared_out
from secateur.studies.run import run_study
from secateur.studies.study_file import load_study
from secateur.studies.tasks import CellTask, perform
from test_ray import cluster  # noqa: F401 - the fixture
from test_studies import SMALL, STUDY, rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files of its processes open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Noting(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_study_loses_nothing_when_a_worker_is_killed(cluster, llama, text_file, tmp_path, monkeypatch):  # noqa: F811
    text = STUDY.format(model=llama, text=text_file)
    for old, new in SMALL.items():
        text = text.replace(old, new)
    path, marker = tmp_path / "study.yaml", tmp_path / "killed"
    path.write_text(text)
    plan = plan_study(load_study(str(path)))
    calm = run_study(plan, None, tmp_path / "calm", workers=0)

    def dying(task, store, tell):
        if isinstance(task, CellTask) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return perform(task, store, tell)

    pools = []

    def pool(state, workers, ray):
        pools.append(RayPool(cluster.address, None, state.store, state.reporter.note, dying))
        return pools[-1]

    monkeypatch.setattr(run_module, "_pool", pool)
    told = Noting()
    found = run_study(plan, None, tmp_path / "spread", told)
    assert marker.exists()
    assert pools[0].size == 2
    assert any("its task is begun again" in note for note in told.notes)
    assert found.failed == {}
    assert found.answers == calm.answers
    values = [[(row["cell"], row["metric"], row["value"]) for row in rows_of(one.folder)] for one in (found, calm)]
    assert values[0] == values[1]


def test_a_task_that_kills_every_worker_fails(cluster, tmp_path):  # noqa: F811
    def deadly(task, store, tell):
        os.kill(os.getpid(), signal.SIGKILL)

    told = []
    pool = RayPool(cluster.address, 1, tmp_path, told.append, deadly)
    pool.start(CellTask(()))
    assert not pool.room
    outcome = pool.wait()[1]
    assert outcome.died
    assert f"It was begun {TRIES} times on Ray" in outcome.error
    assert len(told) == TRIES - 1
    assert pool.room


def test_a_store_that_a_node_does_not_see_is_said(cluster, tmp_path):  # noqa: F811
    pool = RayPool(cluster.address, 1, tmp_path / "elsewhere", lambda text: None)
    pool.start(CellTask(()))
    assert "elsewhere is not there on the node" in pool.wait()[1].error


def test_ray_that_cannot_be_had(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--ray needs Ray, .* pip install ray, or leave"):
        RayPool("local", 1, tmp_path, print)
    assert InlinePool(tmp_path, print).room


@pytest.mark.parametrize(
    ("nodes", "workers", "needed", "expected"),
    [
        ([{"CPU": 1}, {"CPU": 1}], None, 0, (2, 1)),
        ([{"CPU": 1}, {"CPU": 1}], 1, 0, (1, 1)),
        ([{"CPU": 8, "memory": 10e9}, {"CPU": 4, "memory": 100e9}], None, 10**9, (11, 1)),
        ([{"CPU": 8, "memory": 1e9}, {"CPU": 8, "memory": 1e9}], None, 10**9, (2, 8)),
        ([{"CPU": 8}, {"CPU": 4}], 3, 0, (3, 4)),
        ([{"CPU": 2}], 9, 0, (9, 1)),
    ],
)
def test_tasks_fit_the_nodes(nodes, workers, needed, expected):
    assert shared_out(nodes, workers, needed) == expected
