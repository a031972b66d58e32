"""What each layer takes in each format, in milliseconds: measured once, and kept in a file.

A layer is timed as a model of one node on ONNX Runtime's CPU provider, from codes to codes, on the
sizes that the first sample has. Times differ from run to run, so a plan reads them from a file:
the same file gives the same plan. A file for another device has the same form:

    {"target": "ort-cpu", "milliseconds": {"/conv1/Conv": {"int4 uint8": 0.021, ...}, ...}}
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.bit_choice import BitOption
from edgeq.bit_formats import Formats
from edgeq.bit_layers import BitLayer
from edgeq.calibrate import tapped_session
from edgeq.errors import DataError, RecipeError
from edgeq.graph import OPSET, constant
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import Rule
from edgeq.runtime import run
from edgeq.targeting import Runner, find_target

TARGET = "ort-cpu"
RUNS = 30  # of which the fastest counts: whatever else runs only adds to it
STEPS = "choose-qparams, insert-qdq, fold-clip, quantize-weights, pack-weights"

Milliseconds = Mapping[str, Mapping[str, float]]


def measure_latencies(found: Formats, context: Context) -> Milliseconds:
    """Return the milliseconds of every layer in every format; an embedding takes none."""
    times: dict[str, dict[str, float]] = {}
    inputs = _inputs(found.layers, context)
    for done, (layer, options) in enumerate(zip(found.layers, found.options, strict=True)):
        context.progress("measure latencies", done, len(found.layers))
        mine = times.setdefault(layer.name, {})
        for option in dict.fromkeys(options):
            mine[_key(option)] = 0.0
            if layer.x is not None:
                x = inputs[str(layer.x.name)]
                mine[_key(option)] = _milliseconds(layer, option, x, context)
    context.progress("measure latencies", len(found.layers), len(found.layers))
    return times


def write_latencies(path: Path, times: Milliseconds) -> None:
    """Write the file that `read_latencies` reads.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.write_text(json.dumps({"target": TARGET, "milliseconds": times}, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_latencies(path: Path, found: Formats) -> NDArray[np.float64]:
    """Return the milliseconds of the layers in their formats, (layers, options).

    Raises:
        RecipeError: The file is not there or not of this form, or lacks a layer or a format.
    """
    try:
        times = json.loads(path.read_text("utf-8"))["milliseconds"]
        rows = [
            [_entry(times, layer.name, option, path) for option in options]
            for layer, options in zip(found.layers, found.options, strict=True)
        ]
    except OSError as error:
        raise RecipeError(f"latencies {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"latencies {path}: not a file that `edgeq sensitivity --latencies FILE` writes"
        ) from error
    return np.array(rows, np.float64)


def _entry(times: Milliseconds, layer: str, option: BitOption, path: Path) -> float:
    value = times.get(layer, {}).get(_key(option))
    if value is None:
        raise RecipeError(
            f"latencies {path}: nothing is said of {layer} with {_key(option)}; measure this model"
            " in these formats: edgeq sensitivity --latencies FILE --weights ... --activations ..."
        )
    if not 0 <= float(value) < np.inf:
        raise RecipeError(f"latencies {path}: {layer} cannot take {value} ms")
    return float(value)


def _key(option: BitOption) -> str:
    return f"{option.weight} {option.activation}".strip()


def _inputs(layers: Sequence[BitLayer], context: Context) -> dict[str, NDArray[np.float32]]:
    """Return what the layers read on the first sample."""
    reference = context.reference
    assert reference is not None
    feed = {
        name: array.astype(np.float32) if array.dtype == np.uint8 else array
        for name, array in next(iter(context.samples)).items()
    }
    names = list(dict.fromkeys(str(layer.x.name) for layer in layers if layer.x is not None))
    made = [name for name in names if name not in feed]
    found = run(tapped_session(reference, made), feed) if made else {}
    return {name: feed[name] if name in feed else found[name] for name in names}


def _milliseconds(
    layer: BitLayer, option: BitOption, x: NDArray[np.float32], context: Context
) -> float:
    """Return the shortest of some runs of the layer alone, in the formats of `option`."""
    runner, codes = _alone(layer, option, x, context)
    assert layer.x is not None
    feed = {str(layer.x.name): codes}
    best = np.inf
    for _ in range(RUNS):
        start = time.perf_counter()
        runner.run(feed)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def _alone(
    layer: BitLayer, option: BitOption, x: NDArray[np.float32], context: Context
) -> tuple[Runner, NDArray[np.uint8]]:
    """Return the quantized model of one node, opened, and codes to feed it with."""
    node, old = layer.node, layer.node.inputs[0]
    assert old is not None
    given = ir.Value(name=old.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x.shape))
    constants = []
    for value in node.inputs[1:]:
        array = constant(value)
        assert value is not None and array is not None
        kept = ir.tensor(array, name=value.name)
        made = ir.Value(
            name=value.name, type=ir.TensorType(kept.dtype), shape=ir.Shape(array.shape)
        )
        made.const_value = kept
        constants.append(made)
    output = ir.Value(name=node.outputs[0].name, type=ir.TensorType(ir.DataType.FLOAT))
    single = ir.node(
        node.op_type, [given, *constants], node.attributes, outputs=[output], name=node.name
    )
    graph = ir.Graph(
        [given], [output], nodes=[single], initializers=constants, opset_imports={"": OPSET}
    )
    model = ir.Model(graph, ir_version=10)
    rules = [Rule(weight=(("qtype", option.weight),), activation=(("qtype", option.activation),))]
    own = replace(
        context,
        recipe=context.recipe.with_rules(rules),
        reference=model,
        qparams={},
        copies={},
        notes=[],
        float_weights={},
        input_types={str(given.name): "uint8"},
        output_types={str(output.name): "uint8"},
    )
    run_pipeline(STEPS, model, own)
    return find_target(TARGET).load(model), own.qparams[str(given.name)].quantize(x)
