"""A local dask cluster: the same bytes as one process, also when a worker is killed half-way."""

import os
import signal
import sys

import pytest

from edgeq.checkpoint import Checkpoint
from edgeq.errors import DataError
from edgeq.tasks import run_tasks
from edgeq.workers import open_executor
from tests.test_tasks import context, tasks, texts
from tests.work_to_spread import product

distributed = pytest.importorskip("distributed", reason="pip install edgeq[cluster]")


@pytest.fixture(scope="module")
def cluster():
    """Two processes with a thread each."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    ) as found:
        yield found


def test_two_workers_give_the_bytes_of_one_process(cluster):
    expected = texts(run_tasks(product, tasks(), context(), "learn"))
    with open_executor(cluster=cluster.scheduler_address) as executor:
        assert texts(run_tasks(product, tasks(), context(executor=executor), "x")) == expected


def test_a_worker_killed_half_way_takes_nothing_with_it(cluster, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c")
    work = tasks(12, seconds=0.1)
    expected = texts(run_tasks(product, tasks(12, seconds=0), context(), "learn"))
    killed: list[int] = []

    def progress(stage, done, total):
        if done == 4 and not killed:
            worker = next(iter(cluster.workers.values()))
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    with open_executor(cluster=cluster.scheduler_address) as executor:
        found = run_tasks(product, work, context(checkpoint, executor, progress), "learn")
    assert killed and texts(found) == expected
    assert len(list(checkpoint.path.glob("*.npz"))) == 12


def test_nothing_answers(monkeypatch):
    monkeypatch.setattr("edgeq.cluster.SECONDS", 0.2)
    with (
        pytest.raises(DataError, match="no scheduler answers"),
        open_executor(cluster="tcp://127.0.0.1:1"),
    ):
        pass


def test_other_versions_are_refused(cluster, monkeypatch):
    monkeypatch.setattr("edgeq.cluster.versions", lambda: {"edgeq": "0", "numpy": str(os.getpid())})
    with (
        pytest.raises(DataError, match="install the same"),
        open_executor(cluster=cluster.scheduler_address),
    ):
        pass


def test_dask_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(DataError, match=r"pip install edgeq\[cluster\]"),
        open_executor(cluster="tcp://127.0.0.1:1"),
    ):
        pass
