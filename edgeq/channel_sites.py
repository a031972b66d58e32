"""Where channels can be scaled for the linear ops that read them, and the rewrite that does it.

before:  y = Conv(v, w)
after:   y = Conv(Mul(v, g), w / g)                     one g > 0 for each input channel

In real arithmetic nothing changes; what is quantized does: `v * g` has the channels in other units.
Where a linear op makes `v`, through ops that commute with positive factors, its weights take g and
no Mul is needed. Elsewhere `fold-channel-scales` takes the Mul into the QuantizeLinear behind it,
which then has a scale for each channel, while the DequantizeLinear in front of the readers keeps
one for all:

    QuantizeLinear(v, s / g) -> DequantizeLinear(s) -> Conv(w / g)

A value that an integer kernel makes as codes has lost what finer steps would keep: behind a linear
op whose result others read too there is no site, nor behind the model's inputs, which keep their
own form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.code_plan import is_embedding, plan_codes
from edgeq.graph import Editor, constant, consumers, int_attribute, producer, rank
from edgeq.linear_weights import (
    LinearWeights,
    behind_affine,
    has_linear_weights,
    input_channels,
    linear_weights,
    set_linear_weights,
)
from edgeq.passing import Context
from edgeq.roles import CLIPS, LINEAR, data_inputs, is_activation, moves_codes

Float64 = NDArray[np.float64]
Number = TypeVar("Number", np.int32, np.float64)

# f(x * g) = f(x) * g for g > 0, one g for each channel along axis 1.
HOMOGENEOUS = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "MaxPool", "PRelu", "Relu"}
)


@dataclass(frozen=True, eq=False)
class Site:
    """A value whose channels, along axis 1, can be scaled for the linear ops that read it.

    Attributes:
        value: What the readers read.
        readers: Conv and Gemm nodes with constant weights, all those that read `value`.
        maker: The linear op whose weights can take the factors; None where a Mul takes them.
        branches: Whether something else reads `value` too, or what it was scaled from.
    """

    value: ir.Value
    readers: tuple[ir.Node, ...]
    maker: ir.Node | None
    branches: bool

    @property
    def name(self) -> str:
        """The name of the value."""
        return str(self.value.name)

    @property
    def channels(self) -> int:
        """How many factors there are."""
        return input_channels(self.readers[0])

    @property
    def is_skip(self) -> bool:
        """Whether all readers are 1x1 convolutions beside another branch: shortcuts of blocks."""
        return self.branches and all(_is_pointwise(node) for node in self.readers)


def find_sites(model: ir.Model, context: Context) -> tuple[list[Site], int]:
    """Return the sites in graph order, and how many values that linear ops read are none."""
    wide = {
        value for group in plan_codes(model, context) if group.residual for value in group.values
    }
    tied = _tied(model)
    found, refused = [], 0
    for value in _read_by_linear(model, context):
        nodes = consumers(value)
        takers = (node for node in nodes if _takes_factors(node, value, context))
        readers = tuple(node for node in takers if node not in tied)
        if not readers:
            continue
        branches = len(readers) < len(nodes) or value.is_graph_output()
        if value.name in context.channel_scales:
            base = producer(value).inputs[0]
            found.append(Site(value, readers, None, base is not None and len(consumers(base)) > 1))
            continue
        maker = None if branches else _maker(value, context)
        if maker is not None or _keeps_reals(value, branches, value in wide):
            found.append(Site(value, readers, maker, branches))
        else:
            refused += 1
    return found, refused


def scale_channels(site: Site, factors: Float64, editor: Editor, context: Context) -> Float64:
    """Let the readers of `site` read `value / factors`, and give them `weights * factors`.

    Args:
        site: Where.
        factors: (channels,), positive.
        editor: Of the model.
        context: `channel_scales` gets the scaled value, where a Mul makes it.

    Returns:
        The factors that were applied: those whose inverse is a float32.
    """
    old = _old_numbers(site, context)
    numbers = (old / factors).astype(np.float32)
    applied = np.asarray(old / numbers.astype(np.float64))
    zeros = np.zeros(len(factors))
    for reader in site.readers:
        _give_weights(reader, behind_affine(reader, applied, zeros), editor, context)
    if site.maker is not None:
        maker = linear_weights(site.maker)
        assert maker is not None
        _give_weights(site.maker, maker.scaled(1 / applied, zeros), editor, context)
    else:
        _multiply(site, numbers, editor, context)
    return applied


def _give_weights(node: ir.Node, weights: LinearWeights, editor: Editor, context: Context) -> None:
    """Give `node` new weights; codes that are to be shifted stay so."""
    old = node.inputs[1]
    set_linear_weights(node, weights, editor)
    new = node.inputs[1]
    if old is not None and new is not None and old.name in context.weight_shifts:
        context.weight_shifts[str(new.name)] = context.weight_shifts[old.name]


def _old_numbers(site: Site, context: Context) -> Float64:
    """Return the factors of the Mul that makes the value already, if one does."""
    node = site.value.producer()
    if node is None or site.name not in context.channel_scales:
        return np.ones(site.channels)
    number = constant(node.inputs[1])
    assert number is not None
    return number.astype(np.float64).reshape(-1)


def _multiply(site: Site, numbers: NDArray[np.float32], editor: Editor, context: Context) -> None:
    ndim = rank(site.value)
    assert ndim is not None
    shaped = editor.initializer(f"{site.name}_factors", numbers.reshape(-1, *(1,) * (ndim - 2)))
    if site.name in context.channel_scales:
        producer(site.value).replace_input_with(1, shaped)
        return
    scaled = editor.node(
        "Mul",
        [site.value, shaped],
        f"{site.name}_scaled",
        dtype=ir.DataType.FLOAT,
        shape=site.value.shape,
    )
    editor.insert_after(producer(site.value), [scaled])
    for reader in site.readers:
        reader.replace_input_with(0, scaled)
    context.channel_scales.add(str(scaled.name))


def along_inputs(node: ir.Node, values: NDArray[Number]) -> NDArray[Number]:
    """Return one value per input channel, in a shape that broadcasts against a reader's weight."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm":
        return values[None, :] if int_attribute(node, "transB", 0) else values[:, None]
    group = int_attribute(node, "group", 1)
    ones = (1,) * (weight.ndim - 2)
    if group == 1:
        return values.reshape(1, -1, *ones)
    by_group = values.reshape(group, 1, -1).repeat(weight.shape[0] // group, axis=1)
    return by_group.reshape(-1, weight.shape[1], *ones)


def _read_by_linear(model: ir.Model, context: Context) -> Iterator[ir.Value]:
    """Yield the values that some reader can take factors of, each once."""
    seen: set[ir.Value] = set()
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or value in seen or not _takes_factors(node, value, context):
            continue
        seen.add(value)
        yield value


def _tied(model: ir.Model) -> set[ir.Node]:
    """Return the nodes whose weight is an embedding as well: it stays as it is, stored once."""
    arrays = (constant(node.inputs[0]) for node in model.graph if is_embedding(node))
    tables = [array for array in arrays if array is not None]
    tied = set()
    for node in model.graph if tables else ():
        weight = constant(node.inputs[1]) if has_linear_weights(node) else None
        if weight is not None and any(np.array_equal(weight, table) for table in tables):
            tied.add(node)
    return tied


def _takes_factors(node: ir.Node, value: ir.Value, context: Context) -> bool:
    """Whether `node` is a Conv or Gemm that reads `value` along its input channels."""
    if node.op_type not in ("Conv", "Gemm") or not has_linear_weights(node):
        return False
    if context.keep_float(node) or int_attribute(node, "transA", 0):
        return False
    return [v is value for v in node.inputs].count(True) == 1 and node.inputs[0] is value


def _is_pointwise(node: ir.Node) -> bool:
    weight = constant(node.inputs[1])
    return node.op_type == "Conv" and weight is not None and set(weight.shape[2:]) == {1}


def _maker(value: ir.Value, context: Context) -> ir.Node | None:
    """Return the linear op that makes `value`, if its outputs are the channels of `value`."""
    node = value.producer()
    while node is not None and not node.domain and node.op_type in HOMOGENEOUS:
        source = node.inputs[0]
        if source is None or consumers(source) != [node] or source.is_graph_output():
            return None
        if [index for _, index in source.uses()] != [0]:  # it is the slope of a PRelu
            return None
        node = source.producer()
    if node is None or node.op_type not in ("Conv", "Gemm") or not has_linear_weights(node):
        return None
    if rank(value) != rank(node.outputs[0]) or context.keep_float(node):
        return None
    return node


def _keeps_reals(value: ir.Value, branches: bool, wide: bool) -> bool:
    """Whether `value` is known more finely than 8-bit codes where it is scaled."""
    if wide:
        return True
    node = value.producer()
    if node is None:
        return False
    if branches and moves_codes(node):
        return False
    return any(_is_real(source) for source in _sources(value))


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """Yield where `value` comes from, through what moves elements or limits them."""
    node = value.producer()
    if node is None or not (moves_codes(node) or node.op_type in CLIPS):
        yield value
        return
    inputs = data_inputs(node) if moves_codes(node) else node.inputs[:1]
    for source in inputs:
        if source is not None and is_activation(source):
            yield from _sources(source)


def _is_real(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type not in LINEAR
