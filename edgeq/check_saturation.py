"""Whether this machine's ONNX Runtime saturates pairs of uint8 * int8 products.

x86 CPUs without VNNI multiply with an instruction that saturates the sum of two products at 16
bits; the session option `session.x64quantprecision` avoids it, at half the speed, also on CPUs that
do not need it. So the machine is asked: a product that would saturate is computed by the runtime's
own kernel, once with a single row and once with several, and the option is set where it is wrong.
A CPU's name or flags would not do: emulators show those of their host.

Part of a bundle's `check.py`: numpy, onnxruntime and standard library.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

PRECISION = "session.x64quantprecision"
_DEPTH, _COLUMNS, _LARGEST, _WEIGHT = 8, 4, 255, 127

# y = MatMulInteger(x, w): x uint8 [m, 8], w int8 [8, 4], all 127; a serialized ModelProto.
PROBE = (
    b'\x08\x08\x12\x00:v\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*+\x08\x08\x08\x04'
    b"\x10\x03B\x01wJ " + bytes([_WEIGHT]) * (_DEPTH * _COLUMNS) + b"Z\x14\n\x01x\x12\x0f\n\r\x08"
    b"\x02\x12\t\n\x03\x12\x01m\n\x02\x08\x08b\x14\n\x01y\x12\x0f\n\r\x08\x06\x12\t\n\x03\x12\x01m"
    b"\n\x02\x08\x04B\x04\n\x00\x10\r"
)


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Return whether uint8 * int8 products saturate here without the precision option."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = np.full((rows, _DEPTH), _LARGEST, np.uint8)
        if np.any(session.run(None, {"x": x})[0] != _LARGEST * _WEIGHT * _DEPTH):
            return True
    return False


def needed_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return the session options without the precision option, if nothing saturates here.

    Bits are the same with it and without it on such a machine; speed is not.
    """
    if PRECISION not in options or saturates():
        return dict(options)
    return {key: value for key, value in options.items() if key != PRECISION}
