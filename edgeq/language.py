"""Feeds of a causal language model: windows of a text, each token with the next one as its label.

As calibration, by a function that `--calibration MODULE:FUNCTION` names:

    def windows():
        return token_windows(np.load("tokens.npy", mmap_mode="r"), 256)

As evaluation data, for `--metric nll` or `perplexity`: the same, or a file of `save_windows`.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError
from edgeq.feeds import LABEL, Feed
from edgeq.metrics import IGNORED

Tokens = NDArray[np.integer[Any]] | Sequence[int]


def token_windows(
    tokens: Tokens, length: int, stride: int | None = None, *, batch: int = 1, name: str = "ids"
) -> Iterator[Feed]:
    """Yield the windows of a text as feeds with a label, from its begin to its end.

    All windows have the same length: the last one begins earlier instead. Where windows overlap, a
    token's label counts in the first of them alone, so that with strides up to `length` each token
    behind the first counts once.

    Args:
        tokens: Ids, one axis; an array that is mapped from a file is read window by window.
        length: Of a window, in tokens.
        stride: From the begin of a window to that of the next; None: `length`. A shorter one lets a
            model see more text in front of what is counted; a longer one leaves text out.
        batch: Windows in a feed; the last feed may hold fewer.
        name: Of the model's input.

    Returns:
        Feeds `{name: [batch, length], "label": [batch, length]}`, int64; labels that do not count
        are `edgeq.metrics.IGNORED`.

    Raises:
        DataError: There are too few tokens for one window, or they are no row of integers.
    """
    ids = np.asanyarray(tokens)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"tokens are {ids.dtype} {list(ids.shape)}; give integers on one axis")
    stride = length if stride is None else stride
    if min(length, stride, batch) < 1:
        raise DataError(f"length {length}, stride {stride}, batch {batch}: each must be at least 1")
    if len(ids) < length + 1:
        raise DataError(f"{len(ids)} tokens make no window of {length} and the token behind it")
    if name == LABEL:
        raise DataError(f"an input named {LABEL!r} leaves no name for the labels; rename it")
    return _feeds(ids, length, stride, batch, name)


def save_windows(
    path: str | os.PathLike[str],
    tokens: Tokens,
    length: int,
    stride: int | None = None,
    *,
    name: str = "ids",
) -> None:
    """Write the windows of a text to an `.npz`, for `--evaluation` and `check`.

    The arguments and what is raised: see `token_windows`.
    """
    (feed,) = token_windows(tokens, length, stride, batch=max(1, len(tokens)), name=name)
    arrays: dict[str, Any] = dict(feed)
    with Path(path).open("wb") as file:  # given a path, numpy would add an ending
        np.savez(file, **arrays)


def _feeds(
    ids: NDArray[np.integer[Any]], length: int, stride: int, batch: int, name: str
) -> Iterator[Feed]:
    last = len(ids) - 1 - length
    starts = [*range(0, last, stride), last]
    counted = [0, *(start + length for start in starts[:-1])]  # tokens in front of it are done
    for first in range(0, len(starts), batch):
        rows = slice(first, first + batch)
        windows = np.stack([ids[s : s + length + 1] for s in starts[rows]]).astype(np.int64)
        label = windows[:, 1:].copy()
        for row, start, end in zip(label, starts[rows], counted[rows], strict=True):
            row[: max(0, end - start)] = IGNORED
        yield {name: windows[:, :-1].copy(), LABEL: label}
