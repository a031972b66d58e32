"""Hold arrays against the inputs of a model, before a runtime does with less to say.

Every message names the place, the array, what was found there, and what to do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import DataError, ModelError, suggest

LABEL = "label"  # the array that is no input: what a metric compares outputs with

Array = NDArray[Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class InputSpec:
    """What a model takes as one input.

    Attributes:
        name: Of the graph's input.
        dtype: uint8 where the user feeds frames, else the model's.
        shape: The first axis is the batch; None for a symbolic dimension. None as a whole where the
            model does not say.
        span: The least and the greatest integer, where the user gave them.
        max_dim: The most that a symbolic dimension can be, where bits are proven up to there.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    span: tuple[int, int] | None = None
    max_dim: int | None = None


def input_specs(
    model: ir.Model,
    input_types: Mapping[str, str] | None = None,
    input_ranges: Mapping[str, tuple[int, int]] | None = None,
    max_dim: int | None = None,
) -> tuple[InputSpec, ...]:
    """Return the inputs of `model` that have to be fed, in graph order.

    Args:
        model: Inputs that an initializer is the default of are left out.
        input_types: Inputs fed as frames: name to `uint8`; `float32` changes nothing.
        input_ranges: The least and the greatest value of integer inputs, by name, where known.
        max_dim: The most that a symbolic dimension can be.

    Raises:
        ModelError: An input is not a tensor of booleans, integers or floats.
    """
    types, spans = input_types or {}, input_ranges or {}
    values = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return tuple(
        _input_spec(value, types.get(str(value.name), ""), spans.get(str(value.name)), max_dim)
        for value in values
    )


def _input_spec(
    value: ir.Value, kind: str, span: tuple[int, int] | None, max_dim: int | None
) -> InputSpec:
    dtype = None if value.dtype is None else value.dtype.numpy()
    if dtype is None or dtype.kind not in "biuf" or not isinstance(value.type, ir.TensorType):
        found = "of no known type" if value.type is None else str(value.type)
        raise ModelError(f"input {value.name!r} is {found}: only tensors of numbers can be fed")
    shape = value.shape
    dims = None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)
    if dims and dims[0] == 0:
        raise ModelError(f"input {value.name!r} is a batch of 0: export it with a symbolic batch")
    dtype = np.dtype(np.uint8) if kind == "uint8" else dtype
    return InputSpec(str(value.name), dtype, dims, span, max_dim)


def check_names(specs: Sequence[InputSpec], names: Iterable[str], where: str) -> None:
    """Refuse arrays that are no input, and inputs without an array; `label` may be there.

    Raises:
        DataError: Names do not fit.
    """
    known, found = [spec.name for spec in specs], list(names)
    for name in found:
        if name not in (*known, LABEL):
            raise DataError(
                f"{where}: array {name!r} is no input of the model{suggest(name, known)};"
                f" its inputs: {', '.join(known)}"
            )
    missing = [name for name in known if name not in found]
    if missing:
        raise DataError(
            f"{where}: no array for the input {missing[0]!r}; it holds {', '.join(found) or 'none'}"
        )


def check_dtype(spec: InputSpec, dtype: np.dtype[Any], where: str) -> None:
    """Refuse what does not convert to the input's dtype without loss.

    A runtime would refuse it too; narrowed in silence, it would not be the data that was meant.

    Raises:
        DataError: The dtype does not fit.
    """
    if dtype.newbyteorder("=") == spec.dtype:
        return
    text = f"{where} is {dtype}, the input takes {spec.dtype}"
    if spec.dtype.kind == dtype.kind == "f":
        raise DataError(f"{text}: convert it with .astype(numpy.{spec.dtype})")
    if spec.dtype.kind == "f":
        raise DataError(
            f"{text}: convert it as for training (scaled, normalised), or, for a model that"
            f" takes camera frames, ask for --input-type {spec.name}=uint8"
        )
    if spec.dtype == np.uint8:
        raise DataError(f"{text}: give frames of 0..255 with .astype(numpy.uint8)")
    if dtype.kind not in "biu" or not np.can_cast(dtype, spec.dtype, "safe"):
        raise DataError(f"{text}: convert it with .astype(numpy.{spec.dtype})")


def check_rows(spec: InputSpec, shape: tuple[int, ...], where: str) -> None:
    """Refuse samples that do not fit; `shape` has the sample axis first, its length is free.

    Raises:
        DataError: Number of axes or a dimension does not fit.
    """
    expected = spec.shape
    if expected is None:
        return
    rows = expected[1:]
    if _fits(shape[1:], rows):
        _check_open(spec, shape[1:], rows, where)
        return
    hint = "; the first axis must be that of the samples" if _fits(shape, rows) else ""
    raise DataError(
        f"{where} has shape {list(shape)}, the input {_text(expected)}"
        f" (axis 0: samples){hint or ': change the data or the model'}"
    )


def check_shape(spec: InputSpec, shape: tuple[int, ...], where: str) -> None:
    """Refuse an array that cannot be fed as it is.

    Raises:
        DataError: Number of axes or a dimension does not fit, the batch included.
    """
    if spec.shape is None:
        return
    if _fits(shape, spec.shape):
        _check_open(spec, shape, spec.shape, where)
        return
    if shape and spec.shape and _fits(shape[1:], spec.shape[1:]):
        raise DataError(
            f"{where} holds {shape[0]} samples, the model takes exactly {spec.shape[0]} at once"
        )
    hint = "; add the batch axis, array[None]" if _fits(shape, spec.shape[1:]) else ""
    raise DataError(
        f"{where} has shape {list(shape)}, the input {_text(spec.shape)}"
        f"{hint or ': change the data or the model'}"
    )


def convert(spec: InputSpec, array: Array, where: str) -> Array:
    """Return `array` in the input's dtype, C order, if all its values are finite.

    Raises:
        DataError: A value is NaN, infinite or out of range, or the dtype does not fit.
    """
    check_dtype(spec, array.dtype, where)
    ready = np.asarray(array, spec.dtype, order="C")
    check_finite(ready, where)
    check_range(spec, ready, where)
    return ready


def check_range(spec: InputSpec, array: Array, where: str) -> None:
    """Refuse integers outside the range that the user gave.

    Raises:
        DataError: There is one.
    """
    if spec.span is None or not array.size:
        return
    low, high = spec.span
    for value in (int(array.min()), int(array.max())):
        if not low <= value <= high:
            raise DataError(
                f"{where} holds {value}, outside the range {low}:{high} that --input-range gives:"
                " leave the sample out, or widen the range"
            )


def check_finite(array: Array, where: str) -> None:
    """Refuse NaN and Inf.

    Raises:
        DataError: There is one; the message names the first one's position.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    flat = int(np.argmin(np.isfinite(array)))
    place = ", ".join(str(int(i)) for i in np.unravel_index(flat, array.shape))
    raise DataError(
        f"{where} holds {array.reshape(-1)[flat]} at [{place}]: leave the sample out, or repair it"
    )


def check_feed(specs: Sequence[InputSpec], feed: object, where: str) -> tuple[Feed, Array | None]:
    """Return a user's feed ready for the model, and its label.

    Args:
        specs: The model's inputs.
        feed: Input names, and perhaps `label`, to arrays with the batch axis.
        where: Which feed, for messages.

    Raises:
        DataError: It does not fit.
    """
    if not isinstance(feed, Mapping):
        raise DataError(
            f"{where} is {type(feed).__name__}; give a dict of input names to arrays with the"
            " batch axis"
        )
    check_names(specs, (str(name) for name in feed), where)
    ready: Feed = {}
    for spec in specs:
        place = f"{where}: array {spec.name!r}"
        array = as_array(feed[spec.name], place)
        check_shape(spec, array.shape, place)
        ready[spec.name] = convert(spec, array, place)
    counts = {s.name: len(ready[s.name]) for s in specs if s.shape and s.shape[0] is None}
    check_counts(counts, where)
    inputs = {spec.name for spec in specs}
    label = feed.get(LABEL) if LABEL not in inputs else None
    return ready, None if label is None else as_label(label, where)


def check_counts(counts: Mapping[str, int], where: str) -> None:
    """Refuse arrays of different numbers of samples, or of none.

    Raises:
        DataError: They differ, or are 0.
    """
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{where}: different numbers of samples: {text}; give one row each")
    if 0 in counts.values():
        raise DataError(f"{where}: holds no samples")


def as_label(value: object, where: str) -> Array:
    """Return a label as an array of finite numbers.

    Raises:
        DataError: It is not.
    """
    label = as_array(value, f"{where}: array {LABEL!r}")
    check_finite(label, f"{where}: array {LABEL!r}")
    return label


def as_array(value: object, where: str) -> Array:
    """Return a user's array (numpy, or anything with `__array__`) as numpy's.

    Raises:
        DataError: It is no array of numbers.
    """
    if not hasattr(value, "__array__"):
        raise DataError(f"{where} is {type(value).__name__}; give a numpy array")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is {array.dtype}; give booleans, integers or floats")
    return array


def _check_open(
    spec: InputSpec, shape: Sequence[int], expected: Sequence[int | None], where: str
) -> None:
    """Refuse open dimensions beyond those that bits are proven for."""
    for size, fixed in zip(shape, expected, strict=True):
        if fixed is None and spec.max_dim is not None and size > spec.max_dim:
            raise DataError(
                f"{where} has a dimension of {size}, and bits are proven up to {spec.max_dim}:"
                f" compile with --max-dim {size}, or leave it out"
            )


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        e is None or e == n for n, e in zip(shape, expected, strict=True)
    )


def _text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"
