"""The table of formats in docs/low-bits.md holds what the code defines."""

from pathlib import Path

import numpy as np
import pytest

from edgeq.numerics.floating import FORMATS
from edgeq.numerics.qtype import FLOAT4, FLOAT8

PAGE = (Path(__file__).parent.parent / "docs/low-bits.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in PAGE.split("\n## ")[0].splitlines()
    if line.startswith("| `")
]


def test_every_format_has_a_row():
    assert sorted(row[0] for row in ROWS) == sorted(n.removesuffix("fn") for n in FORMATS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_numbers_are_those_of_the_code(row):
    name, bits, numbers, width, product, count, runs_as = row
    form = FORMATS.get(name) or FORMATS[f"{name}fn"]
    units = form.magnitudes / form.magnitudes[1]
    assert np.array_equal(units, np.rint(units))
    largest = int(units[-1])
    assert (int(bits), width) == (form.bits, f"{form.width} bits")
    if numbers.startswith("0 to "):
        assert numbers == f"0 to {largest:,}"
    else:
        assert [int(n) for n in numbers.split()] == units.astype(int).tolist()
    assert product == f"{255 * largest:,}"
    assert count == f"{(2**31 - 1) // (255 * largest):,}"
    assert (runs_as == "int8 weights") == (form.width <= 8)


@pytest.mark.parametrize("name", FLOAT4)
def test_grids_of_integers_are_the_formats(name):
    """What recipes call float4e2m1 is E2M1 in units of its smallest number."""
    form = FORMATS[f"{name.removeprefix('float4')}fn"]
    positive = [value for value in FLOAT4[name].values or () if value >= 0]
    assert positive == (form.magnitudes / form.magnitudes[1]).astype(int).tolist()


@pytest.mark.parametrize("name", FLOAT8)
def test_types_of_onnx_are_the_formats(name):
    form = FORMATS[name.removeprefix("float8")]
    assert FLOAT8[name].dtype == form.dtype and FLOAT8[name].qmax == form.largest
