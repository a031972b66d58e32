"""A tensor as a function of what views hold at the same place.

What is computed element by element is not stored: it is computed where it is read, until a kernel
writes it. Operators that move elements move the views instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

from edgeq.tvm.program import Tensor
from edgeq.tvm.views import View

Array = NDArray[Any]
LookUp = Callable[[Array, Expr], Expr]  # a constant table, and an index
Compute = Callable[[Sequence[Expr], LookUp], Expr]


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A tensor that is computed where it is read.

    Attributes:
        shape: Its sizes.
        dtype: numpy's name.
        views: What it reads; each has this shape.
        compute: From the elements of the views, as TIR, to its own.
        evaluate: The same in numpy, by the definition of the operators.
        cost: About how many operations an element takes.
        known: Whether it is computed by arithmetic; else it is looked up.
    """

    shape: tuple[int, ...]
    dtype: str
    views: tuple[View, ...]
    compute: Compute
    evaluate: Callable[[Sequence[Array]], Array]
    cost: int = 0
    known: bool = True

    @classmethod
    def of(cls, tensor: Tensor) -> "Pointwise":
        """Return a tensor that lies in memory."""
        return cls.of_view(View.of(tensor))

    @classmethod
    def of_view(cls, view: View) -> "Pointwise":
        """Return what a view holds."""
        return cls(view.shape, view.buffer.dtype, (view,), _first, _first_array)

    @classmethod
    def literal(cls, value: np.generic) -> "Pointwise":
        """Return a number."""
        dtype = value.dtype.name

        def compute(elements: Sequence[Expr], look_up: LookUp) -> Expr:
            del elements, look_up
            return tirx.const(value.item(), dtype)

        return cls((), dtype, (), compute, lambda arrays: np.asarray(value))

    @property
    def is_view(self) -> bool:
        """Whether nothing is computed."""
        return self.compute is _first

    def moved(self, move: Callable[[NDArray[np.int64]], Array]) -> "Pointwise | None":
        """Return what an operator that moves elements makes of this; None if that is no view."""
        views = []
        for view in self.views:
            found = view.moved(move)
            if found is None:
                return None
            views.append(found)
        shape = views[0].shape if views else move(np.zeros(self.shape, np.int64)).shape
        return Pointwise(
            shape, self.dtype, tuple(views), self.compute, self.evaluate, self.cost, self.known
        )


def _first(elements: Sequence[Expr], look_up: LookUp) -> Expr:
    del look_up
    return elements[0]


def _first_array(arrays: Sequence[Array]) -> Array:
    return arrays[0]
