"""Float sums are exact where a grid proves it, and unproven elsewhere."""

import numpy as np
import pytest

from tests.certificates import UNITS, W8, Arrays, certificate, f32, last

WF = W8.astype(np.float32)
WT = W8.transpose(1, 0, 2, 3).copy()
BIG = np.full((4, 8, 3, 3), 2**14 + 1, np.float32)
SUM_ROWS: list[tuple[str, str, Arrays, str, str]] = [
    ("Conv of units", "y = Conv(xd, w)", {"w": WF}, "exact sum", "multiples of 1,"),
    ("Conv, sum over 2**24", "y = Conv(xd, w)", {"w": BIG}, "unproven", "beyond 2**24"),
    ("Conv off the grid", "y = Conv(xd, w)", {"w": WF * f32(0.1)}, "unproven", "no known grid"),
    (
        "Conv whose float weights take in a Mul",
        "c = Conv(xd, w) y = Mul(c, third)",
        {"w": WF},
        "unproven",
        "folded",
    ),
    (
        "ConvTranspose with dequantized weights, then Mul",
        "wd = DequantizeLinear(wt, one, zw) c = ConvTranspose(xd, wd) y = Mul(c, third)",
        {"wt": WT, "zw": np.array(0, np.int8)},
        "exact sum",
        "multiples of 1,",
    ),
    (
        "ReduceMean",
        "y = ReduceMean(xd, hw)",
        {"hw": np.array([2, 3])},
        "exact sum",
        "IEEE division",
    ),
    ("ReduceSum", "y = ReduceSum(xd, hw)", {"hw": np.array([2, 3])}, "exact sum", "24500 <="),
    ("GlobalAveragePool in the tail", "y = GlobalAveragePool(xd)", {}, "exact sum", "division"),
    ("AveragePool in the tail", "y = AveragePool<kernel_shape=[3,3]>(xd)", {}, "exact sum", "2205"),
    (
        "Resize by two",
        'y = Resize<mode="linear">(xd, , by)',
        {"by": f32(1, 1, 2, 2)},
        "exact sum",
        "multiples of 0.0625,",
    ),
    (
        "Resize by three",
        'y = Resize<mode="linear">(xd, , by)',
        {"by": f32(1, 1, 3, 3)},
        "unproven",
        "power of two",
    ),
    (
        "Resize cubic",
        'y = Resize<mode="cubic">(xd, , by)',
        {"by": f32(1, 1, 2, 2)},
        "unproven",
        "cubic",
    ),
    (
        "Resize nearest",
        'y = Resize<mode="nearest">(xd, , by)',
        {"by": f32(1, 1, 3, 3)},
        "data movement",
        "copied",
    ),
    (
        "a mean of values that are on no grid",
        "m = Mul(xd, third) y = ReduceMean(m, hw)",
        {"hw": np.array([2, 3])},
        "unproven",
        "no known grid",
    ),
]


@pytest.mark.parametrize(
    ("rule", "body", "arrays", "kind", "text"), SUM_ROWS, ids=[r[0] for r in SUM_ROWS]
)
def test_float_sums(rule: str, body: str, arrays: Arrays, kind: str, text: str) -> None:
    found = certificate(f"{UNITS} {body}", arrays)
    named = [p for p in found.proofs if text in p.detail]
    assert [p.kind for p in named] == [kind], [(p.op_type, p.kind, p.detail) for p in found.proofs]
    assert len(found.unproven) == (kind == "unproven")


SQUARES = "w = Cast<to=11>(x) q = Mul(w, w) y = ReduceSum(q, last)"
PREFIX = "w = Cast<to=6>(x) y = CumSum(w, last)"
WIDE_ROWS = [
    ("float64 squares", SQUARES, "uint16[4,100] x", "exact sum", "at most 429483622500 <= 2**53"),
    ("most that fit", SQUARES, f"uint16[4,{2**21}] x", "exact sum", "<= 2**53 - 1 of them"),
    ("beyond 2**53", SQUARES, f"uint16[4,{2**21 + 65}] x", "unproven", "beyond 2**53 - 1"),
    ("float32 squares", SQUARES.replace("11", "1"), "uint16[4,9] x", "unproven", "no known grid"),
    (
        "float32",
        "w = Cast<to=1>(x) y = ReduceSum(w, last)",
        "uint16[9,256] x",
        "exact sum",
        "2**24",
    ),
    ("int32", "w = Cast<to=6>(x) y = ReduceSum(w, last)", "uint16[4,9] x", "integer", "589815"),
    (
        "beyond int32",
        "w = Cast<to=6>(x) y = ReduceSum(w, last)",
        f"uint16[1,{2**16}] x",
        "unproven",
        "beyond int32",
    ),
    (
        "int64",
        "w = Cast<to=7>(x) q = Mul(w, w) y = ReduceSum(q, last)",
        f"uint16[1,{2**22}] x",
        "integer",
        "integer sum",
    ),
    ("prefix sums", PREFIX, "uint16[4,9] x", "integer", "at most 589815"),
    ("prefix sums up to max_dim", PREFIX, "uint16[4,L] x", "integer", f"{65535 * 4096}"),
    ("prefix sums beyond int32", PREFIX, f"uint16[1,{2**16}] x", "unproven", "beyond int32"),
    (
        "prefix sums backwards, without the last",
        "w = Cast<to=6>(x) y = CumSum<exclusive=1, reverse=1>(w, last)",
        "uint16[4,9] x",
        "integer",
        "at most 589815",
    ),
    ("prefix sums in float32", PREFIX.replace("6", "1"), "uint16[9,256] x", "exact sum", "2**24"),
    (
        "prefix sums beyond 2**24",
        PREFIX.replace("6", "1"),
        "uint16[9,257] x",
        "unproven",
        "beyond 2**24",
    ),
    ("prefix sums of reals", "y = CumSum(x, last)", "float[9,2] x", "unproven", "no known grid"),
    (
        "positions of tokens",
        "i = Cast<to=7>(m) y = CumSum(i, last)",
        "bool[B,L] m",
        "integer",
        "integer arithmetic",
    ),
]


@pytest.mark.parametrize(
    ("rule", "body", "inputs", "kind", "text"), WIDE_ROWS, ids=[r[0] for r in WIDE_ROWS]
)
def test_sums_in_other_types(rule: str, body: str, inputs: str, kind: str, text: str) -> None:
    found = certificate(body, {"last": np.array([-1])}, inputs)
    assert last(found)[0] == kind and text in last(found)[1], last(found)
    assert len(found.unproven) == (kind == "unproven")
