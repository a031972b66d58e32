"""The feeds that hunt ties in a model: what its inputs may hold, and which sizes it takes.

Integers stay within the range that the user gave, the rows that they select, or what the samples
showed. Dimensions that the model leaves open also get other sizes than the samples had, where the
float model takes them.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import DataError
from edgeq.index_values import index_values, known_spans
from edgeq.passing import Context
from edgeq.seen_inputs import SeenInputs, symbols
from edgeq.stimuli import KINDS, StimulusInput, other_sizes, resized, stimuli
from edgeq.targeting import Runner

Feed = dict[str, NDArray[Any]]
_FEEDS = 2  # of each other size: two kinds, the next two for the next size


def stimulus_inputs(context: Context) -> list[StimulusInput]:
    """Return the inputs of the calibrated model, sizes as in the first sample.

    Raises:
        DataError: There is no sample.
    """
    calibration, reference = context.calibration, context.reference
    assert calibration is not None and reference is not None
    first = next(iter(context.samples), None)
    if first is None:
        raise DataError("the calibration set is empty")
    spans = _integers(reference, context, calibration.inputs)
    dims = {str(value.name): symbols(value) for value in reference.graph.inputs}
    inputs = []
    for name, array in first.items():
        known = calibration.statistics.get(name)
        low, high = spans.get(name, (0, 1)) if known is None else (known.low, known.high)
        qparams = context.qparams.get(name)
        item = StimulusInput(name, array.dtype, array.shape, qparams, low, high, dims[name])
        inputs.append(item)
    return inputs


def _integers(model: ir.Model, context: Context, seen: SeenInputs) -> Mapping[str, tuple[int, int]]:
    """Return the range of each integer input."""
    found = index_values(model.graph, context.input_ranges)
    known = known_spans(model.graph, found, context.max_dim)
    selected = {str(source.name): span for source, span in known.items()}
    return {**seen.spans, **selected, **context.input_ranges}


def feeds_of_other_sizes(
    inputs: list[StimulusInput], context: Context, float_model: Runner
) -> Iterator[tuple[dict[str, int], list[Feed]]]:
    """Yield sizes that the samples did not have, each with feeds.

    Args:
        inputs: As `stimulus_inputs` returns them.
        context: What the samples showed.
        float_model: Decides: sizes that it refuses, or makes nothing finite of, are left out.
    """
    calibration, reference = context.calibration, context.reference
    assert calibration is not None and reference is not None
    real = {str(v.name) for v in reference.graph.inputs if v.dtype == ir.DataType.FLOAT}
    for number, sizes in enumerate(other_sizes(inputs, calibration.inputs.sizes, context.max_dim)):
        items = [resized(item, sizes) for item in inputs]
        begin = number * _FEEDS % len(KINDS)
        feeds = list(islice(stimuli(items, seed=context.seed, rounds=1), begin, begin + _FEEDS))
        if all(_takes(float_model, feed, real) for feed in feeds):
            yield sizes, feeds


def _takes(float_model: Runner, feed: Feed, real: set[str]) -> bool:
    """Whether the model makes something finite of `feed`; frames are codes of `real` inputs."""
    ready = {n: a.astype(np.float32) if n in real else a for n, a in feed.items()}
    try:
        outputs = float_model.run(ready).values()
    except DataError:
        return False
    return all(array.size and np.isfinite(array).all() for array in outputs)
