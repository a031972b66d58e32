"""Samples: where users have them, as feeds of the model, one at a time and as often as needed.

`.npz` files are read row by row; feeds that come only once are kept on disk. Memory never grows
with the number of samples. Everything is held against the model's inputs on the way.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np

from edgeq.errors import DataError
from edgeq.feeds import (
    LABEL,
    Array,
    Feed,
    check_counts,
    check_dtype,
    check_feed,
    check_finite,
    check_names,
    check_rows,
    convert,
)
from edgeq.feeds import InputSpec as InputSpec
from edgeq.feeds import input_specs as input_specs
from edgeq.npz import NpzFile
from edgeq.spool import Spool
from edgeq.user_code import find_function

Labelled = tuple[Feed, Array | None]
_KINDS = "a .npz file, a folder of such, or MODULE:FUNCTION"


class Samples(ABC):
    """Feeds of a model; each iteration streams them anew, in the same order."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of feeds of one iteration; None where that is not known beforehand."""

    @abstractmethod
    def labelled(self) -> Iterator[Labelled]:
        """Yield each feed with its label, or None.

        Raises:
            DataError: Samples cannot be read, or do not fit the model.
        """

    def __iter__(self) -> Iterator[Feed]:
        """Yield feeds: input names to arrays with the batch axis; the label is left out."""
        return (feed for feed, _ in self.labelled())


def open_samples(
    data: object, *, inputs: Sequence[InputSpec], batch: int = 1, limit: int | None = None
) -> Samples:
    """Open samples in any of the forms that users have them in.

    Args:
        data: `.npz` path, folder of such (by name), `MODULE:FUNCTION` (called for each iteration),
            an iterable of feeds, or an object with `get_next()` (`rewind()` if it has that).
            Feeds have the batch axis already; a `label` may be in them.
        inputs: What the model takes.
        batch: Samples of a `.npz` to feed at once, where the model does not fix that.
        limit: Only the first so many samples; whole feeds of them.

    Raises:
        DataError: They cannot be read, do not fit the model, or there are none.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{limit} samples are none: give at least 1")
    if isinstance(data, (str, os.PathLike)):
        samples = _open_path(os.fspath(data), inputs, batch, limit)
    else:
        samples = _open_object(data, inputs, limit)
    for _ in samples:  # the first feed tells early what is wrong with all of them
        break
    return samples


def _open_path(text: str, inputs: Sequence[InputSpec], batch: int, limit: int | None) -> Samples:
    path = Path(text)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError(f"{path}: the folder holds no .npz file")
        return NpzSamples(files, inputs, batch, limit)
    if path.suffix == ".npz":
        return NpzSamples([path], inputs, batch, limit)
    if path.exists():
        raise DataError(f"{path}: give {_KINDS}; other files are not read, pickles never")
    if ":" not in text:
        raise DataError(f"{text}: no such file; give {_KINDS}")
    function = find_function(text)
    return FeedSamples(lambda: _call(function, text), inputs, text, limit)


def _open_object(data: object, inputs: Sequence[InputSpec], limit: int | None) -> Samples:
    where = "samples"
    get_next, rewind = getattr(data, "get_next", None), getattr(data, "rewind", None)
    if callable(get_next):
        if callable(rewind):
            return FeedSamples(lambda: _drain(get_next, rewind), inputs, where, limit)
        return SpooledSamples(_drain(get_next), inputs, where, limit)
    if isinstance(data, Mapping):
        raise DataError("samples: a dict is one feed; give a list of them, [feed, ...]")
    if not isinstance(data, Iterable):
        raise DataError(
            f"samples: {type(data).__name__} cannot be read; give {_KINDS}, an iterable of feeds,"
            " or an object with get_next()"
        )
    iterator = iter(data)
    if iterator is data:
        return SpooledSamples(iterator, inputs, where, limit)
    size = len(data) if isinstance(data, Sequence) and limit is None else None
    return FeedSamples(lambda: iter(data), inputs, where, limit, size)


def _drain(
    get_next: Callable[[], object | None], rewind: Callable[[], object] = lambda: None
) -> Iterator[object]:
    rewind()
    while (feed := get_next()) is not None:
        yield feed


def _call(function: Callable[..., object], where: str) -> Iterator[object]:
    """Yield what a user's function does; what it raises becomes a message that names it."""
    try:
        result = function()
        if isinstance(result, Mapping) or not isinstance(result, Iterable):
            raise DataError(
                f"{where} returned {type(result).__name__}; let it yield feeds, dicts of input"
                " names to arrays"
            )
        yield from result
    except DataError:
        raise
    except Exception as error:  # the user's code can raise anything
        raise DataError(f"{where} failed: {type(error).__name__}: {error}") from error


class FeedSamples(Samples):
    """Feeds of the user's, from a source that can be started again."""

    def __init__(
        self,
        start: Callable[[], Iterator[object]],
        inputs: Sequence[InputSpec],
        where: str,
        limit: int | None = None,
        count: int | None = None,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            start: Returns an iterator over all feeds; called for each iteration.
            inputs: What the model takes.
            where: What messages call the source.
            limit: Stop after the feed with the last of so many samples.
            count: Number of feeds, if known.
        """
        self._start, self._inputs, self._where = start, tuple(inputs), where
        self._limit, self._count = limit, count

    @property
    def count(self) -> int | None:
        """Known for lists, and after the first whole iteration."""
        return self._count

    def labelled(self) -> Iterator[Labelled]:
        """Yield each feed, checked, with its label."""
        index = rows = 0
        for index, found in enumerate(self._start(), 1):
            feed, label = check_feed(self._inputs, found, f"{self._where}: feed {index - 1}")
            yield feed, label
            rows += self._rows(feed)
            if self._limit is not None and rows >= self._limit:
                break
        if index == 0:
            raise DataError(f"{self._where}: there are no samples; give at least one")
        self._count = index

    def _rows(self, feed: Feed) -> int:
        """Return the number of samples in a feed: the first axis of its first input."""
        first = next(iter(feed.values()), np.zeros(1))
        return len(first) if first.ndim else 1


class SpooledSamples(Samples):
    """Feeds that came once, and can be read again from disk."""

    def __init__(
        self,
        feeds: Iterator[object],
        inputs: Sequence[InputSpec],
        where: str,
        limit: int | None = None,
    ) -> None:
        """Read all of `feeds`, one at a time."""
        self._spool = Spool([spec.name for spec in inputs])
        for feed, label in FeedSamples(lambda: feeds, inputs, where, limit).labelled():
            self._spool.add(feed, label)

    @property
    def count(self) -> int:
        """Number of feeds."""
        return self._spool.count

    def labelled(self) -> Iterator[Labelled]:
        """Yield each feed with its label."""
        return iter(self._spool)


class NpzSamples(Samples):
    """Rows of `.npz` files, the files one after another."""

    def __init__(
        self,
        files: Sequence[Path],
        inputs: Sequence[InputSpec],
        batch: int = 1,
        limit: int | None = None,
    ) -> None:
        """Read the headers of all files.

        Raises:
            DataError: Arrays do not fit the model or each other, or do not fill its batches.
        """
        self._files, self._inputs = tuple(files), tuple(inputs)
        self._batch = _batch(inputs, batch, str(files[0]))
        found = [_check_file(path, self._inputs) for path in files]
        labels = [labelled for _, labelled in found]
        if any(labels) and not all(labels):
            path = files[labels.index(False)]
            raise DataError(f"{path}: no array {LABEL!r}, though {files[labels.index(True)]} has")
        self._label = any(labels)
        self._rows = self._whole(sum(count for count, _ in found), limit)

    def _whole(self, rows: int, limit: int | None) -> int:
        """Return how many of `rows` are used, all in whole batches if the model fixes them."""
        where = self._files[0] if len(self._files) == 1 else self._files[0].parent
        if rows == 0:
            raise DataError(f"{where}: holds no samples")
        used = rows if limit is None else min(rows, limit)
        fixed = any(spec.shape and spec.shape[0] is not None for spec in self._inputs)
        rest = used % self._batch if fixed else 0
        if rest and used in (rows, rest):  # else the limit alone cuts a batch
            raise DataError(
                f"{where}: {used} samples do not fill batches of {self._batch}, which the model"
                " takes at once; give a multiple, or export the model with a symbolic batch"
            )
        return used - rest

    @property
    def count(self) -> int:
        """Number of feeds."""
        return -(-self._rows // self._batch)

    def labelled(self) -> Iterator[Labelled]:
        """Yield each batch of rows with its labels."""
        rows = islice(self._read(), self._rows)
        while group := list(islice(rows, self._batch)):
            feed = {spec.name: self._stack(spec, [row[spec.name] for row in group])
                    for spec in self._inputs}  # fmt: skip
            yield feed, np.stack([row[LABEL] for row in group]) if self._label else None

    def _stack(self, spec: InputSpec, rows: list[Array]) -> Array:
        if spec.shape == ():
            return rows[0].copy()
        if len({row.shape for row in rows}) > 1:
            raise DataError(
                f"{self._files[0].parent}: array {spec.name!r} has samples of different shapes,"
                f" which cannot be one batch of {self._batch}"
            )
        return np.stack(rows)

    def _read(self) -> Iterator[Feed]:
        """Yield the rows of all files, by name, without the batch axis."""
        specs = {spec.name: spec for spec in self._inputs}
        names = [*specs, LABEL] if self._label else list(specs)
        for path in self._files:
            with NpzFile(path) as file, ExitStack() as stack:
                # Rows that are not read to the end would keep the file open.
                columns = [stack.enter_context(closing(file.rows(name))) for name in names]
                for index, values in enumerate(zip(*columns, strict=True)):
                    row = dict(zip(names, values, strict=True))
                    for name, value in row.items():
                        where = f"{path}: array {name!r}, sample {index}"
                        if name in specs:
                            row[name] = convert(specs[name], value, where)
                        else:
                            check_finite(value, where)
                    yield row


def _batch(inputs: Sequence[InputSpec], batch: int, where: str) -> int:
    """Return how many rows are fed at once."""
    if not inputs:
        raise DataError(f"{where}: the model has no inputs, there is nothing to feed")
    if batch < 1:
        raise DataError(f"a batch of {batch} samples is none: give at least 1")
    sizes = {s.name: 1 if s.shape == () else s.shape[0] for s in inputs if s.shape is not None}
    fixed = {name: size for name, size in sizes.items() if size is not None}
    if len(set(fixed.values())) > 1:
        text = ", ".join(f"{name!r} {size}" for name, size in fixed.items())
        raise DataError(
            f"{where}: the model's inputs differ in their first axis ({text}), so rows of an .npz"
            " are no samples; give MODULE:FUNCTION that yields feeds"
        )
    return next(iter(fixed.values()), batch)


def _check_file(path: Path, inputs: Sequence[InputSpec]) -> tuple[int, bool]:
    """Hold the headers of one file against the model; return its rows, and if it has a label."""
    with NpzFile(path) as file:
        check_names(inputs, file.names, str(path))
        counts = {}
        for spec in inputs:
            header, where = file.header(spec.name), f"{path}: array {spec.name!r}"
            check_dtype(spec, header.dtype, where)
            check_rows(spec, header.shape, where)
            counts[spec.name] = header.shape[0]
        labelled = LABEL in file.names and LABEL not in counts
        if labelled:
            counts[LABEL] = file.header(LABEL).shape[0]
        check_counts(counts, str(path))
        return counts[inputs[0].name], labelled
