"""The natural logarithm by square roots: every operation is one that IEEE defines.

    r = w ** (1 / 64)                                by six square roots
    z = (r - 1) / (r + 1)
    log(w) = 128 * (z + z**3 / 3 + z**5 / 5 + z**7 / 7 + z**9 / 9)

For `1 <= w <= 2**16`, z is below 0.087 and the terms left out are below 1e-12. Everything is done
in float64. (log(r) = 2 * artanh(z): Abramowitz and Stegun, 4.1.27.)
"""

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor

_ROOTS = 6
_TERMS = 5


def logarithm(editor: Editor, w: ir.Value, name: str) -> list[ir.Value]:
    """Return the values, in order, that make `log(w)`; the last has the shape of `w`.

    Args:
        editor: Makes the nodes; the caller inserts them.
        w: float64, at least 1 and at most 2**16.
        name: Names what is made.
    """
    made: list[ir.Value] = []

    def write(op_type: str, *inputs: ir.Value) -> ir.Value:
        value = editor.node(
            op_type, inputs, f"{name}_{op_type.lower()}", dtype=ir.DataType.DOUBLE, shape=w.shape
        )
        made.append(value)
        return value

    one = editor.initializer(f"{name}_one", np.float64(1))
    root = w
    for _ in range(_ROOTS):
        root = write("Sqrt", root)
    z = write("Div", write("Sub", root, one), write("Add", root, one))
    square = write("Mul", z, z)
    # Horner's rule, from the highest power down; the factor in front is part of the coefficients.
    factors = [2.0 ** (_ROOTS + 1) / (2 * k + 1) for k in reversed(range(_TERMS))]
    coefficients = [editor.initializer(f"{name}_factor", np.float64(f)) for f in factors]
    total = coefficients[0]
    for coefficient in coefficients[1:]:
        total = write("Add", write("Mul", total, square), coefficient)
    write("Mul", total, z)
    return made
