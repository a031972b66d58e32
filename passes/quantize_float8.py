"""Store what linear ops multiply as 8-bit floats; the ops themselves stay float.

before:  y = Conv(x, w, b)
after:   x_q = QuantizeLinear(Sum(x), sx, 0)                               float8e4m3fn
         y = Conv(Sum(DequantizeLinear(x_q, sx, 0)), DequantizeLinear(w_q, sw, 0), b)

A value has one scale, a weight one for each output channel. Formats and scales are searched for
the least squared error (`edgeq/float_search.py`): with the qtype `float8` each tensor becomes
E4M3 or E5M2, whichever loses less of it. Biases, and whatever is not linear, stay float32.

With `tables=true` weights may be E3M4 or E2M5 too. ONNX has no such types: the weight is stored as
bytes, and a table says what each of them stands for. ONNX Runtime looks them up when it loads the
model, once.

after:   w = Mul(Gather(table, Cast(w_q)), sw)

The Sum of one value is that value, and no optimizer looks through it. Without it ONNX Runtime 1.31
takes the patterns for those of integers: it drops a Relu in front of the QuantizeLinear, quantizes
the bias, moves a Squeeze between the pair, or makes a QLinearConv or MatMulIntegerToFloat of 8-bit
floats; the results are wrong, or the model does not load.

ONNX Runtime's CPU kernels have no 8-bit floats: they compute in float32, in an order of their own.
Such sums have a proof only where every number is an integer in float32's reach, with powers of two
as scales and few, coarse weights; all others need `--allow-unproven`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.chain import Chain
from edgeq.errors import RecipeError
from edgeq.float_search import FloatChoice, choose_for_activation, choose_for_weight
from edgeq.graph import Editor, constant, int_attribute
from edgeq.numerics.affine import QParams, along
from edgeq.numerics.floating import FORMATS
from edgeq.numerics.qtype import FLOAT8, QType
from edgeq.passing import Context, Pass, node_names
from edgeq.places import places_of_node
from edgeq.qdq import REAL_NAME
from edgeq.recipe import QuantSpec, Recipe
from edgeq.roles import is_activation
from edgeq.targeting import Capabilities

LINEAR = ("Conv", "Gemm", "MatMul")
TABLES = ("e3m4", "e2m5fn")
FORM_NAMES = {name.removeprefix("float8"): name for name in FLOAT8}  # in edgeq.numerics.floating


@dataclass(frozen=True)
class QuantizeFloat8(Pass):
    """Put 8-bit floats in front of Conv, Gemm and MatMul.

    Attributes:
        tables: Let weights have formats that ONNX has no type for.
    """

    tables: bool = False

    def check(self, recipe: Recipe, target: str, capabilities: Capabilities) -> None:
        """Refuse targets that have no 8-bit floats.

        Raises:
            RecipeError: The target has none.
        """
        if not capabilities.float8:
            raise RecipeError(
                f"recipe {recipe.name}: {target} computes with integers and has no 8-bit floats;"
                " take --target ort-cpu, or a recipe of integers such as int8"
            )

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many tensors became 8-bit floats.

        Raises:
            RecipeError: The recipe asks for codes of another type.
        """
        assert context.calibration is not None, "quantize-float8 runs after calibration"
        writer = _Writer(model, context, TABLES if self.tables else ())
        for node in list(model.graph):
            if not node.domain and node.op_type in LINEAR and not context.keep_float(node):
                writer.quantize(node)
        note = ", ".join(f"{count} {name}" for name, count in sorted(writer.counts.items()))
        context.notes.append((self.name(), f"tensors of 8-bit floats: {note or 'none'}"))
        return sum(writer.counts.values())


class _Writer:
    """The codes made so far, and the edits that make them."""

    def __init__(self, model: ir.Model, context: Context, tables: Sequence[str]) -> None:
        self.editor, self.context, self.tables = Editor(model.graph), context, tables
        self.codes: dict[ir.Value, tuple[ir.Value, QParams]] = {}
        self.counts: dict[str, int] = {}

    def quantize(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs[:2]):
            if value is None:
                continue
            array = constant(value)
            if array is not None and array.dtype == np.float32:
                self._weight(node, index, value, array)
            elif is_activation(value):
                self._activation(node, index, value)

    def _spec(self, role: str, node: ir.Node) -> QuantSpec:
        spec = self.context.recipe.spec(role, node.op_type, node_names(node), places_of_node(node))
        if spec.qtype != "float8" and spec.qtype not in FLOAT8:
            raise RecipeError(
                f"recipe {self.context.recipe.name}: quantize-float8 makes {', '.join(FLOAT8)}, or"
                f" float8 for the better one; the {role} qtype of {node.op_type} is {spec.qtype}"
            )
        return spec

    def _weight(
        self, node: ir.Node, index: int, value: ir.Value, array: NDArray[np.float32]
    ) -> None:
        spec = self._spec("weight", node)
        axis = None if spec.granularity == "per_tensor" else _output_axis(node, index, array.ndim)
        forms = [*_forms(spec), *(self.tables if spec.qtype == "float8" else ())]
        found = choose_for_weight(array, forms, axis, power_of_two=spec.scale == "power_of_two")
        if found.form in self.tables:
            self._look_up(node, index, value, array, found, axis)
            return
        qparams = self._decided(found, axis)
        codes = self.editor.initializer(f"{value.name}_q", qparams.quantize(array))
        self._dequantize(node, index, value, codes, qparams)

    def _look_up(
        self,
        node: ir.Node,
        index: int,
        value: ir.Value,
        array: NDArray[np.float32],
        found: FloatChoice,
        axis: int | None,
    ) -> None:
        """Store a weight as bytes with a table of what they stand for."""
        form, scale = FORMATS[found.form], along(found.scale, axis, array.ndim)
        half = np.zeros(2 ** (form.bits - 1), np.float32)
        half[: len(form.magnitudes)] = form.magnitudes
        write = Chain(self.editor, str(value.name))
        codes = write.constant(form.patterns(np.asarray(array / scale, np.float32)))
        places = write.cast(codes, ir.DataType.INT32)
        table = write.constant(np.concatenate([half, -half]))
        units = write("Gather", table, places, shape=places.shape)
        real = write("Mul", units, write.constant(scale))
        write.insert_before(node)
        node.replace_input_with(index, real)
        self.counts[found.form] = self.counts.get(found.form, 0) + 1

    def _activation(self, node: ir.Node, index: int, value: ir.Value) -> None:
        if value not in self.codes:
            self.codes[value] = self._quantized(value, self._spec("activation", node))
        codes, qparams = self.codes[value]
        real = self._dequantize(node, index, value, codes, qparams)
        fenced = self._fenced(real)
        self.editor.insert_before(node, [fenced])
        node.replace_input_with(index, fenced)

    def _fenced(self, value: ir.Value) -> ir.Value:
        """Return `value` behind what no optimizer looks through."""
        return self.editor.node(
            "Sum", [value], f"{value.name}_sum", dtype=ir.DataType.FLOAT, shape=value.shape
        )

    def _quantized(self, value: ir.Value, spec: QuantSpec) -> tuple[ir.Value, QParams]:
        assert self.context.calibration is not None
        name = str(value.name)
        seen = self.context.calibration.statistics[name]
        found = choose_for_activation(seen, _forms(spec), power_of_two=spec.scale == "power_of_two")
        qparams = self._decided(found, None)
        fenced = self._fenced(value)
        codes = self.editor.node(
            "QuantizeLinear",
            [fenced, *self._parameters(name, qparams)],
            f"{name}_q",
            dtype=ir.DataType.from_numpy(qparams.qtype.dtype),
            shape=value.shape,
        )
        codes.metadata_props[REAL_NAME] = name
        self.context.qparams[name] = qparams
        maker = value.producer()
        if maker is None:
            self.editor.insert_first([fenced, codes])
        else:
            self.editor.insert_after(maker, [fenced, codes])
        return codes, qparams

    def _decided(self, found: FloatChoice, axis: int | None) -> QParams:
        qtype: QType = FLOAT8[FORM_NAMES[found.form]]
        self.counts[qtype.name] = self.counts.get(qtype.name, 0) + 1
        return QParams(qtype, found.scale, np.zeros(found.scale.shape, np.int32), axis)

    def _parameters(self, name: str, qparams: QParams) -> list[ir.Value]:
        zero = np.zeros(qparams.scale.shape, qparams.qtype.dtype)
        return [
            self.editor.initializer(f"{name}_scale", qparams.scale),
            self.editor.initializer(f"{name}_zero_point", zero),
        ]

    def _dequantize(
        self, node: ir.Node, index: int, value: ir.Value, codes: ir.Value, qparams: QParams
    ) -> ir.Value:
        """Let `node` read a DequantizeLinear of its own, as runtimes want it."""
        real = self.editor.node(
            "DequantizeLinear",
            [codes, *self._parameters(str(value.name), qparams)],
            f"{value.name}_dq",
            attributes={} if qparams.axis is None else {"axis": qparams.axis},
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
        )
        self.editor.insert_before(node, [real])
        node.replace_input_with(index, real)
        return real


def _forms(spec: QuantSpec) -> list[str]:
    return [form for form, name in FORM_NAMES.items() if spec.qtype in ("float8", name)]


def _output_axis(node: ir.Node, index: int, ndim: int) -> int | None:
    """Return the axis of the weight's output channels; None where it is the left operand."""
    if index == 0 or ndim < 2:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return ndim - 1
