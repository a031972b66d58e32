"""Where commands write: results on standard output, everything else on standard error."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID


def print_json(entry: object) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(entry))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns; columns of figures are aligned right.

    >>> table([["name", "n"], ["Conv", "12"]])
    ['name   n', 'Conv  12']
    """
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    figures = [all(_is_figure(row[i]) for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, figures, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send to standard error what libraries, native ones too, print on standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class ProgressLines:
    """Progress as a line per stage, for logs; `verbose` adds how long each took."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._stage = ""
        self._start = time.perf_counter()

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Print the stage when it is a new one."""
        if stage == self._stage:
            return
        self.close()
        self._stage, self._start = stage, time.perf_counter()
        print(f"{stage} ...", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print how long the last stage took."""
        if self._verbose and self._stage:
            seconds = time.perf_counter() - self._start
            print(f"{self._stage}: {seconds:.2f} s", file=sys.stderr, flush=True)
        self._stage = ""


class ProgressBar:
    """Progress as a bar, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Move the bar."""
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._stage = self._progress.add_task(stage, total=total), stage
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class NoProgress:
    """No progress at all: `--quiet`."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Print nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[ProgressLines | ProgressBar | NoProgress]:
    """Give the progress that fits: a bar on a terminal, lines elsewhere, nothing when quiet."""
    shown: ProgressLines | ProgressBar | NoProgress
    if quiet:
        shown = NoProgress()
    elif sys.stderr.isatty() and not verbose:
        shown = ProgressBar()
    else:
        shown = ProgressLines(verbose=verbose)
    try:
        yield shown
    finally:
        shown.close()


def _is_figure(cell: str) -> bool:
    return not cell or cell == "exact" or cell.lstrip("-").replace(".", "", 1).isdigit()
