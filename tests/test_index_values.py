"""Where an index goes: what each rule follows, what ends the search, and that it is as it says."""

import numpy as np
import onnx_ir as ir
import pytest

from edgeq.index_rules import RULES
from edgeq.index_values import index_values
from edgeq.onnx_api import infer_shapes
from edgeq.operators import OPERATORS
from edgeq.simulate import Simulator

CONSTANTS = """
    int64[1] first = {0}, int64[1] second = {1}, int64[1] last = {-1}, int64[1] one = {1},
    int64[2] both = {0,1}, int64[1] two = {2}, float[1] k = {3}, float[2] pair = {3,4},
    float[2,1] column = {3,4}, float[1,3] row = {1,2,3}, float[2,3] w = {1,2,3,4,5,6},
    float[3,2] v = {1,2,3,4,5,6}, float[1,3,1] cube = {1,2,3}, float[2,3,1] cubes = {1,2,3,4,5,6},
    float[4,2] rows = {1,2,3,4,5,6,7,8}, int64[2] flat = {-1,2}, int64[3] same = {0,1,2},
    int64[2] pick = {1,0}, int64[2] spread = {5,1}, int64[1,2] grid = {1,0}
"""
# `r` is the index in float32, `c` has one more axis behind; `y` is asked about.
ROWS = [
    # what, the index's shape, nodes, the index's axes in y; None: y is no row of numbers
    ("function", "N", "y = Sin (r)", (0,)),
    ("one number", "N", "y = Mul (r, k)", (0,)),
    ("a number for each place", "2", "y = Mul (r, pair)", None),
    ("outer product", "N", "y = Mul (c, row)", (0,)),
    ("outer product, turned", "N", "y = Mul (r, column)", (1,)),
    ("numbers for places and columns", "2", "y = Mul (c, w)", None),
    ("with itself", "N", "s = Sin (r)  y = Add (r, s)", (0,)),
    ("with itself, turned", "N", "y = Add (r, c)", None),
    ("with another input", "N", "y = Add (r, x)", None),
    ("axis in front", "N", "y = Unsqueeze (r, first)", (1,)),
    ("axes removed", "N", "u = Unsqueeze (c, first)  y = Squeeze (u, first)", (0,)),
    ("the index's axis removed", "1", "s = Sin (c)  y = Squeeze (s, first)", None),
    ("all axes of one removed", "N", "y = Squeeze (c)", None),
    ("transposed", "N,M", "u = Mul (c, row)  y = Transpose <perm: ints = [1,2,0]> (u)", (2, 0)),
    ("reversed", "N", "u = Mul (c, row)  y = Transpose (u)", (1,)),
    ("reshaped behind", "N", "u = Mul (c, row)  y = Reshape (u, same)", None),
    ("reshaped into rows", "N", "u = Mul (c, row)  f = Concat <axis: int = 1> (u, u)"
     "  y = Reshape (f, flat)", None),
    ("reshaped, places kept", "N", "u = MatMul (c, pairs)  y = Reshape (u, flat)", (0,)),
    ("flattened", "N", "u = Unsqueeze (c, two)  y = Flatten (u)", (0,)),
    ("flattened into one", "2", "s = Sin (c)  y = Flatten <axis: int = 0> (s)", None),
    ("cut behind", "N", "u = Mul (c, row)  y = Slice (u, first, two, second)", (0,)),
    ("cut", "N", "u = Mul (c, row)  y = Slice (u, first, two, first)", None),
    ("cut everywhere", "N", "u = Mul (c, row)  y = Slice (u, first, two)", None),
    ("split behind", "N",
     "u = MatMul (c, pairs)  y, z = Split <axis: int = -1, num_outputs: int = 2> (u)", (0,)),
    ("split", "4", "y, z = Split <axis: int = 0, num_outputs: int = 2> (c)", None),
    ("side by side", "N", "s = Sin (c)  y = Concat <axis: int = -1> (c, s)", (0,)),
    ("one after another", "N", "s = Sin (c)  y = Concat <axis: int = 0> (c, s)", None),
    ("beside constants", "1", "y = Concat <axis: int = 1> (c, row)", None),
    ("picked behind", "N", "u = Mul (c, row)  y = Gather <axis: int = 1> (u, pick)", (0,)),
    ("picked in front", "N",
     "u = Mul (row, c)  v3 = Transpose (u)  y = Gather <axis: int = 0> (v3, pick)", (1,)),
    ("picked in front, by a grid", "N",
     "u = Mul (row, c)  v3 = Transpose (u)  y = Gather <axis: int = 0> (v3, grid)", (2,)),
    ("picked", "2", "y = Gather <axis: int = 0> (c, pick)", None),
    ("rows of a table", "N", "y = Gather <axis: int = 0> (rows, t)", (0,)),
    ("columns of a table", "N", "y = Gather <axis: int = 1> (v, t)", (1,)),
    ("rows for several axes", "N,M", "y = Gather (rows, t)", None),
    ("Gemm", "N", "y = Gemm (c, row)", (0,)),
    ("Gemm, bias", "N", "y = Gemm (c, row, row)", (0,)),
    ("Gemm, a bias for each place", "2", "y = Gemm (c, row, w)", None),
    ("Gemm, turned", "3", "y = Gemm <transA: int = 1> (c, v)", None),
    ("Gemm, right", "2", "y = Gemm (v, c)", None),
    ("Gemm over the index", "N,2", "y = Gemm (r, w)", None),
    ("MatMul", "N", "y = MatMul (c, row)", (0,)),
    ("MatMul of cubes", "N,M", "y = MatMul (c, row)", (0, 1)),
    ("MatMul over the index", "N,2", "y = MatMul (r, w)", None),
    ("MatMul over the only axis", "3", "y = MatMul (r, v)", None),
    ("MatMul, left", "N", "u = Unsqueeze (r, first)  y = MatMul (column, u)", (1,)),
    ("MatMul, left, one cube", "N,M", "u = Unsqueeze (r, second)  y = MatMul (cube, u)", (0, 2)),
    ("MatMul, left, a cube each", "2", "u = Unsqueeze (c, second)  y = MatMul (cubes, u)", None),
    ("MatMul, left, over the index", "3", "y = MatMul (w, c)", None),
    ("sum", "N", "u = Mul (c, row)  y = ReduceSum (u, second)", None),
    ("copied for others", "N", "y = Expand (t, spread)", (0, 1)),
]  # fmt: skip


def model(shape: str, nodes: str) -> ir.Model:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    g (int64[{shape}] t, float[X] x) => (y) <{CONSTANTS}, float[1,2] pairs = {{3,4}}> {{
      r = Cast <to: int = 1> (t)
      c = Unsqueeze (r, last)
      {nodes}
    }}
    """
    loaded = ir.from_onnx_text(text)
    infer_shapes(loaded)
    return loaded


@pytest.mark.parametrize(
    ("shape", "nodes", "axes"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_where_an_index_goes(shape, nodes, axes):
    graph = model(shape, nodes).graph
    found = index_values(graph, {"t": (0, 3)})
    y = graph.outputs[0]
    assert (found[y].axes if y in found else None) == axes
    if axes is None:
        return
    copied = nodes.startswith("y = Expand")
    assert (found[y].index.value is y) == copied


@pytest.mark.parametrize(
    ("shape", "nodes", "axes"),
    [row[1:] for row in ROWS if row[3] is not None and "Expand" not in row[2]],
    ids=[row[0] for row in ROWS if row[3] is not None and "Expand" not in row[2]],
)
def test_a_row_depends_on_its_own_element_alone(shape, nodes, axes):
    loaded = model(shape, nodes)
    loaded.graph.inputs[:] = [loaded.graph.inputs[0]]
    simulator = Simulator(loaded)
    sizes = [3 - place for place in range(len(shape.split(",")))]
    indices = np.arange(np.prod(sizes)).reshape(sizes) % (2 if "axis: int = 1> (v" in nodes else 4)
    whole = np.moveaxis(simulator.run({"t": indices})["y"], axes, range(len(axes)))
    compared = 0
    for place in np.ndindex(*sizes):
        alone = indices[place].reshape((1,) * len(sizes))
        row = np.moveaxis(simulator.run({"t": alone})["y"], axes, range(len(axes)))
        assert row[(0,) * len(axes)].tobytes() == whole[place].tobytes()
        compared += row.size
    assert compared == whole.size > 0


def test_every_rule_has_an_operator():
    assert set(RULES) - set(OPERATORS) == set() and len(RULES) > 40
