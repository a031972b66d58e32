"""How far values may differ that depend on nodes without a proof, where the user allowed them.

The root mean square of the difference is held against that of what is expected. In the float tail
only last bits differ. Behind a QuantizeLinear a last bit may move a code by a whole step, and
further layers may amplify that: the limit there tells a wrong result from a rounded one, no more.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.certify import Certificate

IN_FLOAT = 2.0**-12
BEHIND_CODES = 2.0**-3


def tolerances(model: ir.Model, certificate: Certificate) -> Mapping[str, float]:
    """Return, for every value that depends on an unproven node, the limit of `distance`.

    Args:
        model: The certified model.
        certificate: Its proofs, one per node in graph order.
    """
    limits: dict[str, float] = {}
    for node, proof in zip(model.graph, certificate.proofs, strict=True):
        found = [limits[v.name] for v in node.inputs if v is not None and v.name in limits]
        if proof.kind == "unproven":
            found.append(IN_FLOAT)
        if not found:
            continue
        limit = BEHIND_CODES if node.op_type == "QuantizeLinear" else max(found)
        limits |= {str(value.name): limit for value in node.outputs}
    return limits


def distance(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the root mean square of the difference over that of `expected`; infinite if unlike.

    >>> distance(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == 0.1
    True
    """
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return math.inf
    want, got = expected.astype(np.float64), found.astype(np.float64)
    noise, signal = float(np.square(got - want).sum()), float(np.square(want).sum())
    if noise == 0:
        return 0.0
    ratio = noise / signal if signal else math.inf
    return math.inf if math.isnan(ratio) else math.sqrt(ratio)
