"""Generation on a real Ray cluster of two nodes on this machine: what a single engine writes, whatever dies."""

from __future__ import annotations

import itertools
import os
import types

import pytest

from conftest import ScriptedContext, tiny_tokenizer
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.errors import ModelError, UsageError
from secateur.generation.engine import Sampling
from secateur.generation.ray_engine import TRIES, Ray, RayEngine, Worker, inner_settings, share_out
from secateur.generation.self_generation import Goal, SelfGeneration
from secateur.generation.styles.base import Material
from secateur.generation.styles.prefix import Prefix
from secateur.generation.transformers_engine import Transformers
from secateur.journal import Journal

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and log files of its processes open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    try:
        nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
        nodes.connect()
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def written(engine, folder, after=lambda done: None):
    """What self-generation writes with ``engine``; ``after`` is told how many texts are there after every batch."""
    material = Material(tiny_tokenizer(), 0, (), 2, "paragraph", 0)
    prompts = ([0, 10 + n % 50, 60] for n in itertools.count())
    generation = SelfGeneration(
        engine, Prefix(), prompts, 20, Sampling(), [PerplexityFilter(0.2)], 3, 0, material, ScriptedContext()
    )
    return generation.run(Goal(tokens=18 * 19), Journal(folder), lambda done, total: after(done))


def same(found, expected):
    """Whether two lists of samples are the same; processes may round their scores differently."""
    assert [sample.mean_logprob for sample in found] == pytest.approx([s.mean_logprob for s in expected], abs=1e-6)
    return [sample.scored(0.0) for sample in found] == [sample.scored(0.0) for sample in expected]


def test_the_samples_are_those_of_one_engine_though_a_worker_dies(cluster, llama, tmp_path):
    import ray

    plain, engine = Transformers().open(llama, "cpu", "float32"), Ray().open(llama, "cpu", "float32")
    assert len(engine.workers) == 2
    assert engine.end_tokens == plain.end_tokens
    expected = written(plain, tmp_path / "plain")
    assert same(written(engine, tmp_path / "two").samples, expected.samples)

    first = engine.workers[0]
    found = written(engine, tmp_path / "killed", lambda done: ray.kill(first) if done == 6 else None)
    assert engine.workers[0] is not first
    assert same(found.samples, expected.samples)
    assert [verdict.keep for verdict in found.verdicts] == [verdict.keep for verdict in expected.verdicts]

    prompts = [[0, 30, 40], [0, 31]]
    assert same(engine.generate(prompts, 12, Sampling(), 3), plain.generate(prompts, 12, Sampling(), 3))
    assert engine.score(prompts) == pytest.approx(plain.score(prompts), abs=1e-6)
    with pytest.raises(
        UsageError, match=r"^The option 'top' of the transformers engine"
    ):  # raised there, and here as it was
        engine.generate(prompts, 12, Sampling(options={"top": 3}), 3)
    with pytest.raises(RuntimeError, match=r"A Ray worker failed:[\s\S]*IndexError"):
        engine.score([[0, 10**6]])


def test_more_workers_than_the_cluster_has_room_for(cluster, llama):
    with pytest.raises(UsageError, match="9 Ray workers were asked for, but the cluster has 2 CPUs"):
        Ray(workers=9).open(llama, "cpu", "float32")
    with pytest.raises(UsageError, match=r"1 Ray workers with 1 GPUs each .* room for 0"):
        Ray(gpus=1.0).open(llama, "cpu", "float32")


def test_a_folder_that_a_node_does_not_see(tmp_path):
    worker = Worker(Transformers(), tmp_path / "gone", "cpu", "auto")
    with pytest.raises(ModelError, match=r"gone is not there on the node .* put it where every node sees it"):
        worker.open()


class Lost(Exception):
    pass


class Failed(Lost):
    pass


class ScriptedRay:
    """Ray in one process: workers ``lives[n]`` calls long, the n-th made; what they run happens when it is waited for."""

    exceptions = types.SimpleNamespace(RayError=Lost, RayTaskError=Failed)

    def __init__(self, lives):
        self.lives, self.made, self.ran = lives, 0, []

    def make(self):
        left = [self.lives[self.made]]
        self.made += 1

        def remote(what, *arguments):
            left[0] -= 1
            return left[0] >= 0, what, arguments

        methods = {
            what: types.SimpleNamespace(remote=lambda *a, what=what: remote(what, *a)) for what in ("open", "work")
        }
        return types.SimpleNamespace(**methods)

    def put(self, value):
        return value

    def wait(self, refs, num_returns):
        return [refs[-1]], refs[:-1]  # the last to begin is the first to end

    def get(self, ref):
        alive, what, arguments = ref
        if not alive:
            raise Lost("out of memory")
        self.ran.append(what)
        return [1] if what == "open" else arguments[0](None, arguments[1])


def test_what_a_dead_worker_had_is_done_again_in_its_place_and_results_keep_their_order():
    ray = ScriptedRay([9, 2, 3, 9])
    engine = RayEngine(ray, ray.make, 2)
    assert list(engine.spread(lambda _, job: [job], range(7))) == [[job] for job in range(7)]
    assert ray.ran.count("work") == 7
    assert ray.made == ray.ran.count("open") == 4  # the second worker died, and so did the one in its place


def test_a_batch_that_kills_every_worker_is_given_up():
    ray = ScriptedRay([1] * 9)  # each dies of its first batch
    with pytest.raises(UsageError, match=r"Batch 1 of 1 was begun 3 times.*out of memory.*take fewer workers"):
        list(RayEngine(ray, ray.make, 1).spread(lambda _, job: [job], [0]))
    assert ray.made == TRIES
    ray = ScriptedRay([0])
    with pytest.raises(UsageError, match="The model was to be loaded by a Ray worker, and each time its worker died"):
        RayEngine(ray, ray.make, 1)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        ([{"CPU": 8}], None, 0, (1, 8)),
        ([{"CPU": 4}, {"CPU": 12}], None, 0, (2, 4)),
        ([{"CPU": 4}, {"CPU": 12}], 7, 0, (7, 2)),
        ([{"CPU": 1}, {"CPU": 0}], None, 0, (1, 1)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8}], None, 1, (4, 1)),
        ([{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 2}], None, 2, (2, 1)),
        ([{"CPU": 8, "GPU": 1}], None, 0.5, (2, 1)),
        ([{"CPU": 8, "GPU": 4}], 3, 1, (3, 1)),
    ],
)
def test_workers_and_their_cpus_fit_the_nodes(nodes, workers, gpus, expected):
    assert share_out(nodes, workers, gpus) == expected
    count, cpus = expected
    if not gpus:
        assert sum(int(node["CPU"]) // cpus for node in nodes) >= count


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("ray", "runs another engine on its workers"),
        ({"tensor_parallel": 2}, "runs another engine on its workers"),
        ("vlm", "There is no engine named 'vlm'; did you mean 'vllm'"),
        ({"name": "vllm", "tensor_paralel": 2}, "has no setting 'tensor_paralel'; did you mean 'tensor_parallel'"),
        ({"name": "transformers", "continuous": "yes"}, "continuous: .*found 'yes'"),
    ],
)
def test_engines_that_cannot_run_on_workers(engine, message):
    with pytest.raises(UsageError, match=message):
        Ray(engine=engine)


def test_the_inner_engine_has_its_own_settings():
    assert inner_settings({"name": "transformers", "continuous": True}) == Transformers(continuous=True)
    assert inner_settings("transformers") == Transformers()
    for bad in ({"workers": 0}, {"gpus": -1.0}, {"gpus": 1.5}):
        with pytest.raises(UsageError, match="engine ray needs workers >= 1"):
            Ray(**bad)
