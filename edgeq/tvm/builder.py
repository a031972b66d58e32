"""Collects the kernels, buffers and constants of a program while a model is lowered."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx import PrimFunc

from edgeq.tvm.loops import Nest, pointwise_kernel
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Buffer, Kernel, Kind, Layout, Tensor
from edgeq.tvm.views import View

Array = NDArray[Any]


class Builder:
    """Collects them.

    Attributes:
        kernels: So far, in order.
        constants: What constant buffers hold, by name.
    """

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.constants: dict[str, Array] = {}
        self._known: dict[tuple[str, bytes], Buffer] = {}
        self._buffers = 0

    def constant(self, array: Array) -> Buffer:
        """Return the buffer that holds `array` as it lies; equal ones are stored once."""
        flat = np.ascontiguousarray(array).reshape(-1)
        key = flat.dtype.name, flat.tobytes()
        if key not in self._known:
            name = f"c{len(self._known)}"
            self._known[key] = Buffer(name, flat.dtype.name, flat.size, "constant")
            self.constants[name] = flat
        return self._known[key]

    def tensor(self, name: str, dtype: str, layout: Layout, kind: Kind = "workspace") -> Tensor:
        """Return a new tensor with a buffer of its own."""
        elements = int(np.prod(layout.shape))
        return Tensor(name, self.buffer(dtype, elements, kind), layout)

    def buffer(self, dtype: str, elements: int, kind: Kind = "workspace") -> Buffer:
        """Return a new buffer."""
        self._buffers += 1
        return Buffer(f"{kind[0]}{self._buffers - 1}", dtype, elements, kind)

    def add(
        self,
        function: PrimFunc,
        arguments: Sequence[Buffer],
        writes: Buffer,
        does: str,
        symbol: str | None = None,
        scratch: Sequence[Buffer] = (),
    ) -> None:
        """Add a kernel."""
        symbol = symbol or self.symbol(does)
        kernel = Kernel(symbol, function, tuple(arguments), writes, does, tuple(scratch))
        self.kernels.append(kernel)

    def symbol(self, does: str) -> str:
        """Return the name in C of the next kernel."""
        word = "".join(c if c.isalnum() else "_" for c in does.split()[0].lower())
        return f"edgeq_k{len(self.kernels)}_{word}"

    def write(self, x: Pointwise, y: View, does: str) -> None:
        """Add the kernel that writes `x` to `y`."""
        nest = Nest(self.constant)
        function = pointwise_kernel(nest, x, y)
        self.add(function, nest.arguments, y.buffer, does)
