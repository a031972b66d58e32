"""Cases of the operators that move elements, and of Resize; and how cases are made."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

RANDOM = np.random.default_rng(7)


class Case(NamedTuple):
    op_type: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = MappingProxyType({})
    outputs: int = 1
    constants: tuple[int, ...] = ()


def integers(*shape: int, low: int = -9, high: int = 10, dtype: Any = np.float32) -> Any:
    return RANDOM.integers(low, high, shape).astype(dtype)


def reals(*shape: int) -> Any:
    return np.asarray(RANDOM.standard_normal(shape) * 3, np.float32)


def doubles(*shape: int) -> Any:
    return np.asarray(RANDOM.standard_normal(shape) * 3, np.float64)


def i64(*values: int) -> Any:
    return np.array(values, np.int64)


def octets(*shape: int) -> Any:
    return (np.arange(np.prod(shape)) * 89 % 256).astype(np.uint8).reshape(shape)


def u8(value: int) -> Any:
    return np.array(value, np.uint8)


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


A = reals(2, 3, 4, 5)
LAYOUT = [
    Case("Identity", (A,)),
    Case("Concat", (A, reals(2, 3, 1, 5)), {"axis": 2}),
    Case("Concat", (A, reals(2, 3, 4, 2)), {"axis": -1}),
    Case("Split", (A, i64(1, 3)), {"axis": 2}, 2, (1,)),
    Case("Split", (reals(7, 2),), {"num_outputs": 3}, 3),
    Case("Split", (A,), {"axis": -1, "num_outputs": 5}, 5),
    Case("Slice", (A, i64(1), i64(-1), i64(2)), constants=(1, 2, 3)),
    Case("Slice", (A, i64(-1, 0), i64(-99, 99), i64(-1, 1), i64(-2, 3)), constants=(1, 2, 3, 4)),
    Case("Slice", (A, i64(3), i64(0), i64(3), i64(-1)), constants=(1, 2, 3, 4)),
    Case("Slice", (A, i64(0, 2), i64(1, 2**62)), constants=(1, 2)),
    Case("Gather", (A, i64(2, 0, -1)), {"axis": 2}),
    Case("Gather", (A, np.array(1)), {"axis": 1}),
    Case("GatherElements", (reals(9), i64(3, -1, 0, 8))),
    Case("GatherElements", (reals(3, 4), integers(2, 4, low=-3, high=3, dtype=np.int32))),
    Case(
        "GatherElements", (reals(3, 4), integers(3, 7, low=0, high=4, dtype=np.int64)), {"axis": 1}
    ),
    Case("GatherND", (A, integers(6, 2, low=0, high=2, dtype=np.int64))),
    Case("GatherND", (A, integers(2, 6, 1, low=0, high=3, dtype=np.int64)), {"batch_dims": 1}),
    Case("Reshape", (A, i64(0, -1, 10)), constants=(1,)),
    Case("Reshape", (reals(0, 3), i64(3, 0)), {"allowzero": 1}, constants=(1,)),
    Case("Transpose", (A,), {"perm": [2, 0, 3, 1]}),
    Case("Transpose", (A,)),
    Case("Flatten", (A,), {"axis": 2}),
    Case("Flatten", (A,), {"axis": 0}),
    Case("Flatten", (A,), {"axis": -1}),
    Case("Flatten", (A,)),
    Case("Squeeze", (reals(1, 3, 1), i64(0, -1)), constants=(1,)),
    Case("Squeeze", (reals(1, 3, 1),)),
    Case("Unsqueeze", (A, i64(0, -1)), constants=(1,)),
    Case("Expand", (reals(3, 1), i64(2, 1, 6)), constants=(1,)),
    Case("Expand", (reals(), i64(2, 3)), constants=(1,)),
    *(
        Case("Trilu", (A, *diagonal), {"upper": upper}, constants=(1,))
        for diagonal in ((np.array(0),), (np.array(-2),), (np.array(3),))
        for upper in (0, 1)
    ),
    Case("Trilu", (A,)),
    Case("Tile", (reals(2, 3), i64(2, 3)), constants=(1,)),
    Case("Pad", (A, i64(0, 0, 1, 2, 0, 0, 2, 1), np.array(7, np.float32)), constants=(1,)),
    Case("Pad", (A, i64(0, 0, -1, 2, 0, 0, 2, -1)), constants=(1,)),
    Case("Pad", (A, i64(1, 2), np.array(1, np.float32), i64(-1)), constants=(1, 3)),
    Case("Pad", (A, i64(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "reflect"}, constants=(1,)),
    Case("Pad", (A, i64(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "edge"}, constants=(1,)),
    Case("Pad", (A, i64(0, 0, 1, 2, 0, 0, 2, 1)), {"mode": "wrap"}, constants=(1,)),
    Case(
        "Pad",
        (integers(2, 3, dtype=np.uint8, low=0), i64(1, 0, 0, 1), np.array(128, np.uint8)),
        {},
        1,
        (1,),
    ),
    Case("DepthToSpace", (reals(2, 12, 3, 4),), {"blocksize": 2}),
    Case("DepthToSpace", (reals(2, 12, 3, 4),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (reals(2, 3, 4, 6),), {"blocksize": 2}),
    Case("Shape", (A,)),
    Case("Shape", (A,), {"start": 1, "end": -1}),
    Case("Size", (A,)),
    Case("Cast", (reals(99) * 50,), {"to": 6}),
    Case("Cast", (integers(9),), {"to": 9}),
    Case("Cast", (integers(99, low=0, high=256, dtype=np.uint8),), {"to": 6}),
    Case("Cast", (integers(99, low=0, high=256, dtype=np.int32),), {"to": 2}),
    Case("Cast", (integers(9, dtype=np.int64),), {"to": 1}),
    *(
        Case("Cast", (integers(99, low=0, high=2**16, dtype=np.uint16),), {"to": to})
        for to in (1, 11)
    ),
    Case("Cast", (reals(99),), {"to": 11}),
    Case("Cast", (doubles(99),), {"to": 1}),
    Case("CastLike", (reals(9), integers(1, dtype=np.int32))),
    Case("Constant", (), {"value_floats": [1.5, 2.0]}),
    Case("Constant", (), {"value_int": 3}),
    Case("ConstantOfShape", (i64(2, 3),), constants=(0,)),
    Case("Range", (np.array(3), np.array(-9), np.array(-4)), constants=(0, 1, 2)),
    Case(
        "Range",
        (np.array(1, np.float32), np.array(3, np.float32), np.array(0.25, np.float32)),
        constants=(0, 1, 2),
    ),
]
MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
RESIZE = (
    [
        Case(
            "Resize",
            (integers(1, 2, 5, 6), None, f32(1, 1, *scale)),
            {"mode": "nearest", "coordinate_transformation_mode": m, "nearest_mode": n},
            constants=(2,),
        )
        for m in MODES
        for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for scale in ((2.0, 2.0), (0.5, 3.0), (1.7, 0.6))
    ]
    + [
        Case(
            "Resize",
            (integers(1, 2, 5, 6), None, None, i64(1, 2, *size)),
            {"mode": mode, "coordinate_transformation_mode": m},
            constants=(3,),
        )
        for mode in ("nearest", "linear")
        for m in MODES
        for size in ((10, 12), (7, 3), (1, 6), (5, 6))
        if (mode, m, size) != ("linear", "half_pixel_symmetric", (7, 3))  # NEAR: weights not dyadic
    ]
    + [
        Case(
            "Resize",
            (integers(1, 2, 5, 6), None, f32(1, 1, *scale)),
            {"mode": "linear", "coordinate_transformation_mode": m},
            constants=(2,),
        )
        for m in MODES
        for scale in ((2.0, 2.0), (4.0, 2.0), (0.5, 0.5), (1.0, 2.0), (1.3, 0.7))
        if (m, scale) != ("half_pixel_symmetric", (1.3, 0.7))  # NEAR: weights not dyadic
    ]
    + [
        Case(
            "Resize",
            (integers(1, 2, 5, 6, low=0, high=255, dtype=np.uint8), None, f32(1, 1, 2, 2)),
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            },
            constants=(2,),
        ),
        Case(
            "Resize",
            (integers(1, 2, 5, 6), None, f32(2, 2)),
            {"mode": "nearest", "axes": [2, 3]},
            constants=(2,),
        ),
    ]
)
