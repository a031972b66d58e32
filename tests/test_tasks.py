"""Tasks: the same bytes however they are spread, and nothing that is finished is computed again."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from edgeq.calibrate import silent
from edgeq.checkpoint import Checkpoint, digest, kept_until_whole
from edgeq.device import check_device
from edgeq.errors import BundleError, DataError, EdgeqError
from edgeq.passing import Context
from edgeq.tasks import MadeTasks, run_tasks
from edgeq.workers import open_executor
from tests.work_to_spread import broken, dying, product

COUNT = 5


def context(checkpoint=None, executor=None, progress=silent):
    """A context of which nothing but these is read."""
    return Context(
        recipe=None,  # type: ignore[arg-type]
        capabilities=None,  # type: ignore[arg-type]
        samples=None,  # type: ignore[arg-type]
        checkpoint=checkpoint,
        executor=executor,
        progress=progress,
    )


def tasks(count=COUNT, **further):
    extra = {name: np.array(value) for name, value in further.items()}
    return [{"seed": np.array(seed), **extra} for seed in range(count)]


def texts(results):
    return [{name: array.tobytes() for name, array in result.items()} for result in results]


def test_results_come_in_order_and_the_progress_is_told():
    told = []
    found = run_tasks(product, tasks(), context(progress=lambda *a: told.append(a)), "learn")
    expected = [product({"seed": np.array(seed)})["text"].item() for seed in range(COUNT)]
    assert [result["text"].item() for result in found] == expected
    assert told == [("learn", done, COUNT) for done in range(COUNT + 1)]
    assert run_tasks(product, [], context(), "learn") == []


def test_a_task_is_made_when_the_one_before_is_done():
    events = []

    def make(seed):
        events.append(f"made {seed}")
        return {"seed": np.array(seed)}

    made = MadeTasks([partial(make, seed) for seed in range(3)])
    told = context(progress=lambda stage, done, total: events.append(f"done {done}"))
    found = texts(run_tasks(product, made, told, "learn"))
    assert found == texts(run_tasks(product, tasks(3), context(), "learn"))
    assert events == ["done 0", "made 0", "done 1", "made 1", "done 2", "made 2", "done 3"]
    assert len(made[1:]) == 2 and made[1:][0]["seed"] == 1


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_pool_gives_the_bytes_of_one_process(kind):
    expected = texts(run_tasks(product, tasks(), context(), "learn"))
    pool = ThreadPoolExecutor(2) if kind == "threads" else None
    with open_executor(pool, workers=1 if pool else 2) as executor:
        assert executor is not None
        assert texts(run_tasks(product, tasks(), context(executor=executor), "x")) == expected


def test_what_is_finished_is_not_computed_again(tmp_path):
    checkpoint, folder = Checkpoint(tmp_path / "b.unfinished"), tmp_path / "traces"
    folder.mkdir()
    expected = texts(run_tasks(product, tasks(folder=str(folder)), context(), "learn"))
    for file in folder.iterdir():
        file.unlink()
    failing = tasks(folder=str(folder))
    failing[3]["fails"] = np.array(3)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(product, failing, context(checkpoint), "learn")
    assert sorted(f.name[0] for f in folder.iterdir()) == ["0", "1", "2", "3"]
    found = run_tasks(product, tasks(folder=str(folder)), context(checkpoint), "learn")
    assert texts(found) == expected
    assert sorted(f.name[0] for f in folder.iterdir()) == ["0", "1", "2", "3", "3", "4"]
    checkpoint.remove()
    assert not checkpoint.path.exists()


def test_other_input_is_computed_anew(tmp_path):
    task = {"a": np.arange(6, dtype=np.int32), "b": np.array(0.5)}
    changes: list[dict[str, np.ndarray]] = [
        {"a": np.arange(6, dtype=np.int64)},
        {"a": np.arange(6, dtype=np.int32).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.int32)[::-1]},
        {"b": np.array(-0.5)},
        {"c": np.array(0.5)},
    ]
    digests = {digest(("f",), task), *(digest(("f",), {**task, **c}) for c in changes)}
    digests |= {digest(("g",), task), digest(("f", "g"), task)}
    assert len(digests) == len(changes) + 3
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert digest((), {"a": fortran}) == digest((), {"a": np.ascontiguousarray(fortran)})


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "not a zip", "folder"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "b.unfinished")
    expected = texts(run_tasks(product, tasks(), context(checkpoint), "learn"))
    files = sorted(checkpoint.path.iterdir())
    assert len(files) == COUNT
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.unlink()
        if damage == "folder":
            file.with_suffix(".npz").mkdir()
            file.rmdir()
            continue
        file.write_bytes(
            {
                "empty": b"",
                "cut": bytes(data[:200]),
                "flipped": bytes(data),
                "not a zip": b"\x93NUMPY",
            }[damage]
        )
    assert texts(run_tasks(product, tasks(), context(checkpoint), "learn")) == expected
    assert [Checkpoint(checkpoint.path).load(f.stem) is not None for f in files] == [True] * COUNT


def test_arrays_come_back_as_they_were(tmp_path):
    arrays: dict[str, np.ndarray] = {
        "file": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.int8),
        "text": np.array(["a", "bc"]),
        "a/b": np.arange(4, dtype=">i2"),
    }
    checkpoint = Checkpoint(tmp_path / "deep" / "c")
    checkpoint.save("k", arrays)
    found = checkpoint.load("k")
    assert found is not None and list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == np.asarray(array).dtype
        assert found[name].tobytes() == np.asarray(array).tobytes()
    with pytest.raises(TypeError, match="text of numpy's own"):
        checkpoint.save("o", {"x": np.array([None])})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be kept"):
        Checkpoint(tmp_path / "file" / "c").save("k", {})


def test_work_is_kept_until_the_bundle_is_whole(tmp_path):
    destination = tmp_path / "b"
    interrupted = pytest.raises(KeyboardInterrupt, match="unfinished: the same command goes on")
    with interrupted, kept_until_whole(destination) as checkpoint:
        assert checkpoint is not None
        checkpoint.save("k", {})
        raise KeyboardInterrupt
    told = pytest.raises(EdgeqError, match=r"^no proof \(what is finished is kept in .*unfinished")
    with told, kept_until_whole(destination) as checkpoint:
        raise EdgeqError("no proof")
    assert checkpoint is not None and checkpoint.holds_work
    with kept_until_whole(destination) as checkpoint:
        assert checkpoint is not None and checkpoint.holds_work
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EdgeqError, match=r"^no such option$"), kept_until_whole(destination):
        raise EdgeqError("no such option")
    with pytest.raises(KeyboardInterrupt) as plain, kept_until_whole(destination):
        raise KeyboardInterrupt
    assert plain.value.args == () and list(tmp_path.iterdir()) == []


def test_an_error_of_a_task_is_raised_and_the_rest_is_dropped():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match=r"task \d"):
        run_tasks(broken, tasks(), context(executor=pool), "learn")


def test_a_worker_that_dies_is_said_and_work_is_kept(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c")

    work = tasks(folder=str(tmp_path))
    lost = pytest.raises(EdgeqError, match=r"a worker is gone .* is kept")
    with lost, open_executor(workers=2) as pool:
        run_tasks(dying, work, context(checkpoint, pool), "learn")
    with open_executor(workers=2) as pool:
        found = run_tasks(dying, work, context(checkpoint, pool), "learn")
    assert [int(result["seed"]) for result in found] == list(range(COUNT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "at least 1"),
        ({"workers": 2, "cluster": "tcp://127.0.0.1:1"}, "give one of"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(DataError, match=message), open_executor(**options):
        pass


def test_devices_that_are_not_there(monkeypatch):
    check_device("cpu")
    with pytest.raises(DataError, match="choose from cpu, cuda"):
        check_device("gpu")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(DataError, match=r"pip install edgeq\[torch\]"):
        check_device("cuda")


@pytest.mark.torch
def test_a_gpu_that_torch_does_not_see(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="sees no GPU"):
        check_device("cuda")
