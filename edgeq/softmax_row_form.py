"""Give each row of a quantized softmax a scale of its own; divide by its sum behind the product.

before:  p   = QuantizeLinear(e / sum(e), sp, 0);  y = MatMul(p, v)
after:   c   = QuantizeLinear(e, highest / 255, 0)                 the row's largest is 255,
                                                                   or 63 where codes have 6 bits
         acc = Cast(MatMulInteger(c, v, 0, zv))                                       float32
         y   = QuantizeLinear(acc / sum(e), float32(sy / (sv * highest / 255)), zy)

`e` are the terms of the softmax, integers, and `highest` that of the largest element of a row. So
codes count in parts of the largest probability of their row, however small that is. The division
has the size of the result: the form costs no more than the one before.

What a row lost to rounding is known exactly. It can be given back, spread over what the row sees:

         acc = acc + (sum(e) / (highest / 255) - sum(c)) / keys * sum of v - zv
"""

import numpy as np
import onnx_ir as ir

from edgeq.chain import Chain
from edgeq.graph import Editor, replace_uses, take_output
from edgeq.quantized_attention import QuantizedAttention
from edgeq.seen_values import SeenValues, stored_zero_point

INT32, FLOAT, UINT8 = ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.UINT8


def can_be_rows(attention: QuantizedAttention) -> bool:
    """Whether the form can be written: a product of codes, the values computed, and uint8."""
    v, y = attention.group.w, attention.group.y
    product = attention.group.node.op_type == "MatMul" and v.array is None and y is not None
    # Products of uint8 and int8 saturate on some CPUs.
    return product and v.codes.dtype == UINT8


def write_rows(
    attention: QuantizedAttention, seen: SeenValues, editor: Editor, *, refill: bool
) -> ir.Value:
    """Write the form of an attention; `refill` gives each row back what it lost.

    Returns:
        The codes that take the place of `attention.p`.
    """
    group = attention.group
    assert group.y is not None
    v, y, product = group.w, group.y, group.node.outputs[0]
    unit = attention.row_unit
    write = Chain(editor, str(product.name))
    zero = write.constant(np.uint8(0))
    codes = write("QuantizeLinear", attention.terms, write.constant(unit), zero, dtype=UINT8)
    zeros = zero, write.constant(stored_zero_point(v.qparams))
    acc = write("MatMulInteger", codes, v.codes, *zeros, shape=product.shape, dtype=INT32)
    result = write.cast(acc, FLOAT)
    if refill:
        lost = _lost(write, attention, codes)
        share = write("Div", lost, seen.count(write, attention), shape=lost.shape)
        term = write("Mul", write.cast(seen.sum(write, attention), FLOAT), share)
        term.shape = product.shape
        result = write("Add", result, term)
    shares = write("Div", result, attention.total)
    ratio = np.float32(y.qparams.scale / np.float32(v.qparams.scale * unit))
    parameters = write.constant(ratio), write.constant(stored_zero_point(y.qparams))
    rounded = write("QuantizeLinear", shares, *parameters, dtype=y.codes.dtype)
    rounded.metadata_props.update(y.codes.metadata_props)
    write.insert_before(group.node)
    replace_uses(y.codes, rounded)
    take_output(y.codes, rounded)
    return codes


def _lost(write: Chain, attention: QuantizedAttention, codes: ir.Value) -> ir.Value:
    """Return what the codes of each row lack, in codes."""
    total = attention.total
    axes = write.constant(np.array([-1]))
    found = write("ReduceSum", write.cast(codes, FLOAT), axes, keepdims=1)
    found.shape = total.shape
    wanted = write("Div", total, write.constant(attention.row_unit))
    return write("Sub", wanted, found)
