"""Memory that a thread uses again and again.

Fresh arrays of some hundred kilobytes come from the kernel page by page, zeroed, and two threads
that ask at once wait for each other: that costs more than the arithmetic done in them.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_KEEP = 1 << 25  # bytes; a larger buffer is not kept

_local = threading.local()


def scratch(use: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialized array for `use`; the last one for the same use becomes invalid.

    Only for what a function both fills and consumes before it returns or calls what may use it.
    """
    kind = np.dtype(dtype)
    count = 1
    for size in shape:
        count *= size
    wanted = count * kind.itemsize
    buffers: dict[str, NDArray[np.uint8]] | None = getattr(_local, "buffers", None)
    if buffers is None:
        buffers = _local.buffers = {}
    buffer = buffers.get(use)
    if buffer is None or buffer.size < wanted:
        buffer = np.empty(max(wanted, 64), np.uint8)
        if wanted <= _KEEP:
            buffers[use] = buffer
    return buffer[:wanted].view(kind).reshape(shape)
