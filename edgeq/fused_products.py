"""Products fused with what stands beside them: transpositions, factors, sums and activations.

before:  y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.125> (a, b)
after:   y = Mul(MatMul(a, Transpose(b)), 0.125)

before:  y = com.microsoft.FusedConv <activation = "Relu"> (x, w, b, z)
after:   y = Relu(Add(Conv(x, w, b), z))
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.graph import float_attribute, int_attribute, string_attribute
from edgeq.writing import Attribute, Results, Writer

# What the parameters of a fused activation are called by the operator itself.
_PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Elu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"),
        "HardSwish": (),
        "LeakyRelu": ("alpha",),
        "Relu": (),
        "Selu": ("alpha", "gamma"),
        "Sigmoid": (),
        "Softplus": (),
        "Softsign": (),
        "Tanh": (),
    }
)


def _matmul(write: Writer) -> Results:
    return [_product(write)]


def _matmul_activation(write: Writer) -> Results:
    return [_activate(write, _product(write), _named_parameters(write.node))]


def _product(write: Writer) -> ir.Value:
    node = write.node
    a, b = (_turned(write, write.required(index), "AB"[index]) for index in (0, 1))
    product = write("MatMul", a, b)
    alpha = float_attribute(node, "alpha", 1.0)
    return product if alpha == 1 else write("Mul", product, write.number(alpha))


def _turned(write: Writer, x: ir.Value, side: str) -> ir.Value:
    """Return an operand in the form that MatMul wants."""
    batch = bool(int_attribute(write.node, f"transBatch{side}", 0))
    matrix = bool(int_attribute(write.node, f"trans{side}", 0))
    if not batch and not matrix:
        return x
    ndim = write.ndim(x)
    if ndim < 2:
        return x  # a vector has nothing to transpose
    order = list(range(ndim))
    if batch:  # the first axis goes behind those of the batch
        order = [*order[1:-1], 0, order[-1]]
    if matrix:
        order[-2:] = [order[-1], order[-2]]
    return write("Transpose", x, perm=order)


def _conv(write: Writer) -> Results:
    conv = write("Conv", *_inputs(write, 3), **_kept(write.node, "activation"))
    addend = write.input(3)
    total = conv if addend is None else write("Add", conv, addend)
    given = write.node.attributes.get("activation_params")
    return [_activate(write, total, [] if given is None else list(given.as_floats()))]


def _nhwc_conv(write: Writer) -> Results:
    """Conv of channels-last images; its weight is channels-last too."""
    ndim = write.ndim(write.required(1))
    first = [0, ndim - 1, *range(1, ndim - 1)]
    last = [0, *range(2, ndim), 1]
    x, w = (write("Transpose", write.required(i), perm=first) for i in (0, 1))
    attributes = _kept(write.node)
    conv = write("Conv", x, w, *_inputs(write, 3)[2:], **attributes)
    return [write("Transpose", conv, perm=last)]


def _gemm(write: Writer) -> Results:
    gemm = write("Gemm", *_inputs(write, 3), **_kept(write.node, "activation"))
    return [_activate(write, gemm, _named_parameters(write.node))]


def _gemm_fast_gelu(write: Writer) -> Results:
    product = write("MatMul", write.required(0), write.required(1))
    bias = write.input(2)
    total = product if bias is None else write("Add", product, bias)
    return [write("Gelu", total, approximate="tanh")]


def _inputs(write: Writer, count: int) -> list[ir.Value]:
    found = [write.required(0), write.required(1), *(write.input(i) for i in range(2, count))]
    return [value for value in found if value is not None]


def _kept(node: ir.Node, without: str = "-") -> dict[str, Attribute]:
    """Return the attributes of the plain operator."""
    return {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not name.startswith(without)
    }


def _named_parameters(node: ir.Node) -> list[float]:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    return [float_attribute(node, name, 0.0) for name in names if name in node.attributes]


def _activate(write: Writer, x: ir.Value, parameters: list[float]) -> ir.Value:
    name = string_attribute(write.node, "activation", "")
    if not name:
        return x
    if name == "Clip" and len(parameters) == 2:
        low, high = (write.number(p) for p in parameters)
        return write("Clip", x, low, high)
    if name not in _PARAMETERS:
        way_out = "save the model without ONNX Runtime's optimisations"
        raise write.refusal(f"its activation is {name!r}", way_out)
    return write(name, x, **dict(zip(_PARAMETERS[name], parameters, strict=False)))


PRODUCTS: Mapping[str, Callable[[Writer], Results]] = MappingProxyType(
    {
        "FusedConv": _conv,
        "FusedGemm": _gemm,
        "FusedMatMul": _matmul,
        "FusedMatMulActivation": _matmul_activation,
        "GemmFastGelu": _gemm_fast_gelu,
        "NhwcConv": _nhwc_conv,
        "TransposeMatMul": _matmul,
    }
)
