"""Calibration: run the float model on samples and keep what each value looked like.

Samples stream by one at a time and every value's statistics have a fixed size, so memory does not
grow with the number of samples. Values of large models are looked at in several sweeps: what is
tapped at once is bounded too.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import Buckets
from edgeq.data import Samples as Samples
from edgeq.errors import DataError, ModelError
from edgeq.graph import Editor, clone, producer, remove_dead
from edgeq.runtime import Session, make_session, run
from edgeq.seen_inputs import InputObserver, SeenInputs
from edgeq.statistics import Observer, Statistics

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[str, int, int | None], object]

THREADS = 2
TAPPED_BYTES = 256 * 2**20  # of one sample; beyond it values are tapped in several sweeps


def silent(stage: str, done: int, total: int | None) -> None:
    """Take no notice."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the samples showed.

    Attributes:
        statistics: By value name.
        samples: How many samples there were.
        digest: sha256 over the samples: names, dtypes, shapes and bytes, in order.
        inputs: What they showed of the inputs themselves.
        buckets: What the statistics are kept by too, if by anything.
    """

    statistics: Mapping[str, Statistics]
    samples: int
    digest: str
    inputs: SeenInputs = field(default_factory=SeenInputs)
    buckets: Buckets | None = None


def calibrate(
    model: ir.Model,
    samples: Samples | Iterable[Feeds],
    values: Sequence[str],
    *,
    batch: int = 1,
    buckets: Buckets | None = None,
    clip_ratios: Sequence[float] = (),
    progress: Progress = silent,
) -> Calibration:
    """Run `model` on all samples and observe `values`.

    Args:
        model: Float model; not changed.
        samples: Feeds with a batch axis; iterated once, or more often for large models.
        values: Names of float32 values of the model; graph inputs may be among them.
        batch: Feeds that are run at once, for models whose batch axis is symbolic.
        buckets: Keep statistics by the value of this integer input too.
        clip_ratios: Find the ranges that clip these shares of a value's elements.
        progress: Told `calibrate`, the feeds done, and their number, if known.

    Raises:
        DataError: There is no sample, or a value is NaN or infinite on one.
        ModelError: The model has no such value.
    """
    first = next(iter(samples), None)
    if first is None:
        raise DataError("the calibration set is empty: give at least one sample")
    inputs = [str(value.name) for value in model.graph.inputs if value.name in set(values)]
    made = [name for name in dict.fromkeys(values) if name not in inputs]
    count = 0 if buckets is None else buckets.count
    observers = {name: Observer(count, clip_ratios) for name in values}
    groups = _groups(model, made, first) or [[]]
    report = _Progress(progress, samples, len(groups))
    digest, seen = hashlib.sha256(), InputObserver(model)
    counts = []
    for number, group in enumerate(groups):
        session = tapped_session(model, group) if group else None
        done = 0
        for feeds in batches(samples, batch):
            real = as_float(model, joined(feeds))
            found = {} if session is None else run(session, real)
            if number == 0:
                for feed in feeds:
                    _update(digest, feed)
                    seen.add(feed)
                found |= {name: real[name] for name in inputs}
            bucket = None if buckets is None else buckets.of(real)
            _observe(observers, found, bucket, done, len(feeds))
            done += len(feeds)
            report(number, done)
        counts.append(done)
    if len(set(counts)) > 1:
        raise DataError(
            f"the calibration set gave {counts[0]} samples, then {counts[-1]}: it must give the"
            " same ones each time it is iterated"
        )
    results = {name: observer.result() for name, observer in observers.items()}
    statistics = MappingProxyType(results)
    return Calibration(statistics, counts[0], digest.hexdigest(), seen.result(), buckets)


def tapped_session(model: ir.Model, names: Sequence[str]) -> Session:
    """Open a session whose only outputs are the values `names`.

    Raises:
        ModelError: The model makes no value of one of these names.
    """
    tapped = clone(model)
    # Nothing but what is observed, so that the rest of the graph does not run.
    tapped.graph.outputs[:] = _made(tapped, names)
    remove_dead(tapped.graph)
    return make_session(tapped, threads=THREADS)


def _made(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    known = {out.name: out for node in model.graph for out in node.outputs}
    missing = [name for name in names if name not in known]
    if missing:
        raise ModelError(f"cannot observe {missing[0]!r}: the model makes no value of this name")
    return [known[name] for name in names]


def _groups(model: ir.Model, names: Sequence[str], feed: Feeds) -> list[list[str]]:
    """Split `names` so that the arrays of one group on one sample stay within the bound."""
    groups: list[list[str]] = []
    filled = 0
    for name, size in _sizes(model, names, feed).items():
        if not groups or filled + size > TAPPED_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _sizes(model: ir.Model, names: Sequence[str], feed: Feeds) -> dict[str, int]:
    """Return the bytes of float32 values on one sample, without holding any of the values."""
    if not names:
        return {}
    sized = clone(model)
    editor = Editor(sized.graph)
    sizes = [
        editor.node("Size", [value], f"{value.name}_size", dtype=ir.DataType.INT64, shape=())
        for value in _made(sized, names)
    ]
    sized.graph.extend([producer(size) for size in sizes])
    sized.graph.outputs[:] = sizes
    remove_dead(sized.graph)
    found = run(make_session(sized, threads=THREADS), as_float(model, feed))
    return {name: 4 * int(found[str(size.name)]) for name, size in zip(names, sizes, strict=True)}


def batches(samples: Iterable[Feeds], batch: int) -> Iterator[list[Feeds]]:
    """Yield `batch` feeds at a time; fewer where the next one has other shapes, and at the end."""
    feeds: list[Feeds] = []
    for feed in samples:
        if feeds and (len(feeds) == batch or _row_shapes(feed) != _row_shapes(feeds[0])):
            yield feeds
            feeds = []
        feeds.append(feed)
    if feeds:
        yield feeds


def _row_shapes(feed: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes without the batch axis: windows of tokens may differ in length."""
    return {name: array.shape[1:] for name, array in feed.items()}


def joined(feeds: list[Feeds]) -> Feeds:
    """Return the feeds as one, along the batch axis."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def as_float(model: ir.Model, feed: Feeds) -> dict[str, Array]:
    """Return the feed with camera frames as float32, where the model takes that."""
    real = {str(v.name) for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT}
    return {
        name: array.astype(np.float32) if name in real and array.dtype == np.uint8 else array
        for name, array in feed.items()
    }


def _update(digest: "hashlib._Hash", feed: Feeds) -> None:
    for name, array in feed.items():
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def _observe(
    observers: Mapping[str, Observer],
    found: Mapping[str, Array],
    bucket: int | None,
    done: int,
    count: int,
) -> None:
    for name, array in found.items():
        try:
            observers[name].add(array, bucket)
        except ValueError as error:
            place = f"sample {done}" if count == 1 else f"samples {done} to {done + count - 1}"
            raise DataError(
                f"value {name!r} holds {error} on calibration {place} (the first is 0): no range"
                " can be chosen; leave the sample out, or mend the float model"
            ) from error


class _Progress:
    """Counts the feeds of all sweeps."""

    def __init__(self, progress: Progress, samples: object, sweeps: int) -> None:
        count = getattr(samples, "count", None)
        self._count = count if isinstance(count, int) else None  # a list has a method of this name
        self._progress, self._sweeps = progress, sweeps

    def __call__(self, sweep: int, done: int) -> None:
        if self._count is None:
            self._progress("calibrate", done, None)
        else:
            total = self._count * self._sweeps
            self._progress("calibrate", sweep * self._count + done, total)
