"""Fused activations written in plain ones: a bias, a gate, a scaled Sigmoid.

before:  y = com.microsoft.BiasGelu(x, b)      after:  y = Gelu(Add(x, b))
before:  y = com.microsoft.QuickGelu(x)        after:  y = Mul(x, Sigmoid(Mul(x, 1.702)))

com.microsoft.FastGelu rounds its two constants to six digits; written out it is the tanh form of
Gelu, which it approximates to 2**-20.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgeq.graph import constant, float_attribute, int_attribute
from edgeq.writing import Results, Writer


def silu(write: Writer, x: ir.Value, alpha: float = 1.0) -> ir.Value:
    """Return `x * Sigmoid(alpha * x)`."""
    scaled = x if alpha == 1 else write("Mul", x, write.number(alpha))
    return write("Mul", x, write("Sigmoid", scaled))


def _plus_bias(write: Writer) -> ir.Value:
    """Return the first input, the second added where there is one."""
    x, bias = write.required(0), write.input(1)
    return x if bias is None else write("Add", x, bias)


def _gelu(write: Writer) -> Results:
    return [write("Gelu", _plus_bias(write))]


def _fast_gelu(write: Writer) -> Results:
    return [write("Gelu", _plus_bias(write), approximate="tanh")]


def _quick_gelu(write: Writer) -> Results:
    alpha = float_attribute(write.node, "alpha", 1.702)
    return [silu(write, write.required(0), alpha)]


def swish(write: Writer) -> Results:
    """Swish of opset 24."""
    return [silu(write, write.required(0), float_attribute(write.node, "alpha", 1.0))]


def swiglu(write: Writer) -> Results:
    """SwiGLU of opset 28."""
    gate = silu(write, write.required(0), float_attribute(write.node, "alpha", 1.0))
    return [write("Mul", gate, write.required(1))]


def _scaled_silu(write: Writer) -> Results:
    x, scale = write.required(0), write.input(1)
    alpha = float_attribute(write.node, "alpha", 1.0)
    if scale is None and alpha == 1:
        return [silu(write, x)]
    return [silu(write, write("Mul", x, write.number(alpha) if scale is None else scale))]


def _bias_split_gelu(write: Writer) -> Results:
    """Half of the channels times the Gelu of the other half."""
    size = write.dim(write.required(1), 0)
    x = _plus_bias(write)
    left = write.slice(x, 0, size // 2)
    return [write("Mul", left, write("Gelu", write.slice(x, size // 2, size)))]


def _bias_add(write: Writer) -> Results:
    return [write("Add", _plus_bias(write), write.required(2))]


def _gated_add(write: Writer) -> Results:
    gated = write("Mul", write.required(1), write.required(2))
    return [write("Add", write.required(0), gated)]


def _bias_dropout(write: Writer) -> Results:
    """Without dropout, as it is at inference: data + bias + residual."""
    training = constant(write.input(4))
    if write.input(4) is not None and (training is None or training.any()):
        raise write.refusal("it is in training mode", "export the model for inference")
    x, residual = _plus_bias(write), write.input(2)
    return [x if residual is None else write("Add", x, residual)]


def _bias_softmax(write: Writer) -> Results:
    """Over the last axis, where the broadcasting of the bias is that of Add."""
    x, bias = write.required(0), write.required(1)
    ndim = write.ndim(x)
    if int_attribute(write.node, "axis", 1) % ndim != ndim - 1 or write.ndim(bias) != ndim:
        raise write.refusal(
            "it is not over the last axis, or its bias has another rank",
            "save the model without ONNX Runtime's optimisations",
        )
    return [write("Softmax", write("Add", x, bias), axis=-1)]


ACTIVATIONS: Mapping[str, Callable[[Writer], Results]] = MappingProxyType(
    {
        "BiasAdd": _bias_add,
        "BiasDropout": _bias_dropout,
        "BiasGelu": _gelu,
        "BiasSoftmax": _bias_softmax,
        "BiasSplitGelu": _bias_split_gelu,
        "FastGelu": _fast_gelu,
        "GatedAdd": _gated_add,
        "Gelu": _gelu,
        "QuickGelu": _quick_gelu,
        "ScaledSiLU": _scaled_silu,
    }
)
