"""The figures of a compilation: how near the deployed model is to the float one, and how good.

The evaluation data go through both in one stream; without such data the figures are those of the
calibration samples, which the verification has measured.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.data import Samples, input_specs, open_samples
from edgeq.errors import DataError
from edgeq.fidelity import FidelityMeter
from edgeq.measure import Sweep
from edgeq.metrics import Metric, Sqnr, find_metric
from edgeq.passing import Context
from edgeq.request import CompileRequest, Progress
from edgeq.runtime import make_session
from edgeq.source import Source

Arrays = dict[str, NDArray[Any]]
_THREADS = 2
_BLOCK = 1 << 20  # bytes


def score(
    request: CompileRequest, source: Source, context: Context, sweep: Sweep, progress: Progress
) -> dict[str, float]:
    """Return the figures by name.

    Args:
        request: The evaluation data and the metric.
        source: What messages name.
        context: Holds the float model.
        sweep: Holds the deployed model, and what the calibration samples showed.
        progress: Told after every feed.

    Returns:
        `sqnr_db` of the first output and `sqnr_db_OUTPUT` of others, in dB, none for an output that
        is exact; `METRIC` and, except for `sqnr`, `METRIC_float` if a metric was asked for.

    Raises:
        DataError: The data cannot be read, or do not fit the model or the metric.
        UnknownNameError: There is no such metric.
    """
    check_metric(request)
    if request.evaluation is None:
        found = {fidelity.name: fidelity.sqnr_db for fidelity in sweep.fidelities}
        names = [sweep.real_names.get(name, name) for name in sweep.outputs]
        return _sqnr(names, [found[name] for name in names])
    assert context.reference is not None, source.name
    samples = open_samples(
        request.evaluation,
        inputs=input_specs(
            context.reference, context.input_types, context.input_ranges, context.max_dim
        ),
    )
    metrics = None
    if request.metric is not None:
        metrics = find_metric(request.metric), find_metric(request.metric)
    pair = _Pair(context.reference, context, sweep)
    meters = {name: FidelityMeter(name) for name in pair.outputs}
    _run(samples, pair, meters, metrics, progress)
    figures = _sqnr(pair.outputs, [meter.result().sqnr_db for meter in meters.values()])
    if metrics is not None:
        deployed, real = metrics
        figures[str(request.metric)] = deployed.value()
        if not isinstance(real, Sqnr):  # the float model has no noise against itself
            figures[f"{request.metric}_float"] = real.value()
    return figures


def check_metric(request: CompileRequest) -> None:
    """Refuse a metric that cannot be computed, without reading any data.

    Raises:
        DataError: There are no evaluation data for it.
        UnknownNameError: There is no such metric.
    """
    if request.metric is None:
        return
    find_metric(request.metric)
    if request.evaluation is None:
        raise DataError(
            f"metric {request.metric}: there are no evaluation data; give --evaluation DATA"
        )


def check_evaluation(request: CompileRequest, model: ir.Model) -> None:
    """Hold the first sample of evaluation data in files against the model, before long work.

    Raises:
        DataError: The data cannot be read, do not fit the model, or lack the metric's label.
    """
    if not isinstance(request.evaluation, (str, os.PathLike)):
        return
    samples = open_samples(
        request.evaluation,
        inputs=input_specs(model, request.input_types, request.input_ranges, request.max_dim),
    )
    _, label = next(samples.labelled())
    if label is None and request.metric is not None and find_metric(request.metric).needs_label:
        raise DataError(f"metric {request.metric}: {request.evaluation} has no array 'label'")


def evaluation_digest(request: CompileRequest) -> str | None:
    """Return the sha256 of the evaluation data, in hexadecimal, if they are one `.npz` file."""
    if not isinstance(request.evaluation, (str, os.PathLike)):
        return None
    path = Path(request.evaluation)
    if path.suffix != ".npz" or not path.is_file():
        return None  # a folder, or a function that yields the data
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _Pair:
    """The float model and the deployed one, run on the same feeds; outputs by the float's names."""

    def __init__(self, reference: ir.Model, context: Context, sweep: Sweep) -> None:
        self.outputs = [str(value.name) for value in reference.graph.outputs]
        self._deployed_names = dict(zip(self.outputs, sweep.outputs, strict=True))
        self._dtypes = {spec.name: spec.dtype for spec in input_specs(reference)}
        self._session = make_session(reference, threads=_THREADS)
        self._deployed = sweep.device.deployed()
        self._qparams = context.qparams
        self._real_names = sweep.real_names

    def run_float(self, feed: Arrays) -> Arrays:
        """Return the float model's outputs; frames are fed as the numbers that they are."""
        ready = {name: array.astype(self._dtypes[name]) for name, array in feed.items()}
        values = self._session.run(self.outputs, ready)
        return {n: np.asarray(v) for n, v in zip(self.outputs, values, strict=True)}

    def run_deployed(self, feed: Arrays) -> Arrays:
        """Return the deployed model's outputs, as reals where it gives codes."""
        found = self._deployed.run(feed)
        return {name: self._real(d, found[d]) for name, d in self._deployed_names.items()}

    def _real(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        real = self._real_names.get(name)
        return value if real is None else self._qparams[real].dequantize(value)


def _run(
    samples: Samples,
    pair: _Pair,
    meters: dict[str, FidelityMeter],
    metrics: tuple[Metric, Metric] | None,
    progress: Progress,
) -> None:
    for done, (feed, label) in enumerate(samples.labelled(), 1):
        deployed, real = pair.run_deployed(feed), pair.run_float(feed)
        for name, meter in meters.items():
            meter.add(real[name], deployed[name])
        if metrics is not None:
            metrics[0].update(deployed, real, label)
            metrics[1].update(real, real, label)
        progress("evaluate", done, samples.count)


def _sqnr(names: list[str], values: list[float | None]) -> dict[str, float]:
    """Name the decibels of outputs; the first is the one that users look at."""
    keys = ["sqnr_db", *(f"sqnr_db_{name}" for name in names[1:])]
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}
