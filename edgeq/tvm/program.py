"""A lowered model: kernels in order, and the memory that they read and write."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

Kind = Literal["input", "output", "constant", "workspace"]
DTYPES = frozenset(
    {
        "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32",
        "float64",
    }
)  # fmt: skip
NHWC = (0, 2, 3, 1)  # the order in which images lie
SLACK = 64  # bytes behind workspace and constants that kernels may read, never use


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory.

    Attributes:
        shape: Sizes in the order of ONNX.
        order: The axes from the outermost in memory to the innermost: `(0, 2, 3, 1)` is NHWC.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def plain(cls, shape: tuple[int, ...]) -> "Layout":
        """Return the layout of ONNX: the last axis innermost."""
        return cls(shape, tuple(range(len(shape))))

    @property
    def is_plain(self) -> bool:
        """Whether elements lie in the order of ONNX."""
        lying = [axis for axis in self.order if self.shape[axis] != 1]
        return lying == sorted(lying)

    @property
    def stored(self) -> tuple[int, ...]:
        """The sizes in the order of memory."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def strides(self) -> tuple[int, ...]:
        """How many elements a step along each axis of ONNX moves."""
        found = dict.fromkeys(self.order, 1)
        step = 1
        for axis in reversed(self.order):
            found[axis] = step
            step *= self.shape[axis]
        return tuple(found[axis] for axis in range(len(self.shape)))

    def to_memory(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return `array` in the order of memory."""
        return np.ascontiguousarray(array.transpose(self.order))

    def from_memory(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Return what lies in memory as ONNX has it."""
        back = np.argsort(self.order) if self.order else ()
        return np.ascontiguousarray(flat.reshape(self.stored).transpose(back))


@dataclass(frozen=True)
class Buffer:
    """A piece of memory with one type of elements.

    Attributes:
        name: Unique in the program; a C identifier.
        dtype: numpy's name.
        elements: How many.
        kind: Whose it is; a `workspace` is free again after its last reader.
    """

    name: str
    dtype: str
    elements: int
    kind: Kind

    @property
    def size(self) -> int:
        """In bytes."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Tensor:
    """A value of the model that lies in a buffer.

    Attributes:
        name: The name that the model has for it.
        buffer: Where it lies, from the first element.
        layout: How.
    """

    name: str
    buffer: Buffer
    layout: Layout

    def __post_init__(self) -> None:
        """Hold the sizes against each other."""
        assert prod(self.layout.shape) == self.buffer.elements, self


@dataclass(frozen=True, eq=False)
class Kernel:
    """One function of the generated code.

    Attributes:
        symbol: Its name in C.
        function: The TIR; its parameters are buffers, in the order of `arguments`.
        arguments: What is passed, as pointers.
        writes: The argument that it writes.
        does: For people: the nodes that it computes.
        scratch: Those of its arguments that it fills for itself, and a later kernel may read.
    """

    symbol: str
    function: "PrimFunc"
    arguments: tuple[Buffer, ...]
    writes: Buffer
    does: str
    scratch: tuple[Buffer, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """A model as kernels.

    Attributes:
        kernels: In the order of execution.
        constants: The elements of the buffers that are constants, by name, as they lie in memory.
        inputs: Of the model, in its order; memory as ONNX has it.
        outputs: Likewise.
        taps: Every quantized tensor that a kernel writes.
    """

    kernels: tuple[Kernel, ...]
    constants: Mapping[str, NDArray[Any]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    taps: tuple[Tensor, ...]
