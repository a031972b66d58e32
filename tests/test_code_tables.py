"""Look-ups from codes to codes: the bits of the nodes they replace, whoever looks on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.operators import code_tables
from edgeq.simulate import Simulator

Array = NDArray[Any]

# Nodes from reals `a` (and `b`) to `r`, and how many steps an untapped run takes.
CHAINS: dict[str, tuple[str, int]] = {
    "add": ("r = Add(a, b)", 1),
    "sum": ("r = Sum(a, b)", 1),
    "of itself": ("r = Add(a, a)", 1),
    "minus, relu": ("t = Sub(a, b) r = Relu(t)", 1),
    "a ratio": ("r = Div(a, b)", 1),  # 0 / 0 is NaN
    "one code": ("r = HardSwish(a)", 1),
    "requantize": ("r = Neg(a)", 1),
    "silu": ("t = Sigmoid(a) r = Mul(a, t)", 1),
    "a scalar": ("r = Mul(a, k)", 1),
    "shared": ("t = Add(a, b) u = Tanh(t) r = Mul(t, u)", 1),
    "a vector": ("r = Add(a, v)", 3),
    "not elementwise": ("r = Softmax(a)", 3),
    "partly": ("t = Softmax(a) r = Add(t, b)", 5),
    "three": ("t = Add(a, b) r = Add(t, c)", 6),
}
TYPES = (np.uint8, np.int8)


def chain_model(
    nodes: str, kinds: Sequence[str], shapes: Sequence[str] = ("N, 7",) * 3
) -> ir.Model:
    x, y, z = kinds
    inputs = ", ".join(f"{x}[{s}] {n}q" for n, s in zip("abc", shapes, strict=True))
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({inputs}) => ({y}[M, 7] y)
        <float s = {{0.037}}, {x} z = {{{z}}}, float sy = {{0.05}}, {y} zy = {{{z}}},
         float k = {{-1.7}}, float[7] v = {{1, 2, 3, 4, 5, 6, 7}}> {{
            a = DequantizeLinear(aq, s, z)
            b = DequantizeLinear(bq, s, z)
            c = DequantizeLinear(cq, s, z)
            {nodes}
            y = QuantizeLinear(r, sy, zy)
        }}"""
    )


def node_by_node(simulator: Simulator, feeds: dict[str, Array]) -> dict[str, Array]:
    """Execute every node's own step, none of them a look-up."""
    env = dict(feeds)
    for step in simulator._settled:
        step.execute(env)
    return env


def feeds_of(kind: Any, rows: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256))).reshape(2, -1)
    count = rows * 7
    a, b = (np.resize(v, count) for v in every)
    c = random.integers(0, 256, count)
    return {
        f"{n}q": v.astype(np.uint8).view(kind).reshape(rows, 7)
        for n, v in zip("abc", (a, b, c), strict=True)
    }


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("rows", [3, 9363])  # computed; looked up, in several pieces
def test_looked_up_and_computed_are_the_same_bits(name: str, kind: Any, rows: int) -> None:
    nodes, steps = CHAINS[name]
    text = np.dtype(kind).name
    simulator = Simulator(chain_model(nodes, (text, text, "3")))
    assert len(simulator.steps) == steps
    feeds = feeds_of(kind, rows)
    for _ in range(2):  # the table is made in the first run and used again
        found = simulator.run(feeds)["y"]
        assert found.shape == (rows, 7)
        assert found.dtype == kind
        assert found.tobytes() == node_by_node(simulator, feeds)["y"].tobytes()


@pytest.mark.parametrize("taps", [["t"], ["a", "u"], ["r"], ["aq", "y"], "all"])
def test_taps_inside_a_chain_are_what_the_nodes_make(taps: Any) -> None:
    simulator = Simulator(chain_model(CHAINS["shared"][0], ("uint8", "int8", "9")))
    feeds = feeds_of(np.uint8, 9363)
    expected = node_by_node(simulator, feeds)
    found = simulator.run(feeds, taps)
    names = {"a", "b", "c", "t", "u", "r", "y"} if taps == "all" else {"y", *taps}
    assert set(found) == names
    for name, array in found.items():
        assert array.tobytes() == expected[name].tobytes()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple),
    scales=st.tuples(*[st.floats(2.0**-10, 16.0, width=32)] * 3),
    zeros=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 2**32),
)
def test_sums_of_any_scale_and_shape(shape: Any, scales: Any, zeros: Any, seed: int) -> None:
    sizes = f"[{', '.join(map(str, shape))}]" if shape else ""
    fixed = ", ".join(
        f"float s{n} = {{{s!r}}}, uint8 z{n} = {{{z}}}"
        for n, s, z in zip("aby", scales, zeros, strict=True)
    )
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (uint8{sizes} aq, uint8{sizes} bq) => (uint8{sizes} y) <{fixed}> {{
            a = DequantizeLinear(aq, sa, za)
            b = DequantizeLinear(bq, sb, zb)
            r = Add(a, b)
            y = QuantizeLinear(r, sy, zy)
        }}"""
    )
    simulator = Simulator(model)
    random = np.random.default_rng(seed)
    feeds = {n: random.integers(0, 256, shape).astype(np.uint8) for n in ("aq", "bq")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_tables, "_worthwhile", lambda *_: True)
        found = simulator.run(feeds)["y"]
    assert found.shape == shape
    assert found.tobytes() == node_by_node(simulator, feeds)["y"].tobytes()


def test_memory_in_another_order_is_read_right() -> None:
    simulator = Simulator(chain_model("r = Sub(a, b)", ("uint8", "uint8", "0")))
    feeds = feeds_of(np.uint8, 9363)
    turned = {name: np.asfortranarray(array) for name, array in feeds.items()}
    assert simulator.run(turned)["y"].tobytes() == simulator.run(feeds)["y"].tobytes()


def test_shapes_that_differ_are_broadcast_by_the_nodes() -> None:
    model = chain_model("r = Add(a, b)", ("uint8", "uint8", "5"), ("N, 7", "1, 7", "1, 7"))
    feeds = feeds_of(np.uint8, 9363) | {n: feeds_of(np.uint8, 1)[n] for n in ("bq", "cq")}
    simulator = Simulator(model)
    assert len(simulator.steps) == 1
    expected = node_by_node(simulator, feeds)["y"]
    assert simulator.run(feeds)["y"].tobytes() == expected.tobytes()


def test_shapes_that_do_not_fit_name_the_node() -> None:
    model = chain_model("r = Add(a, b)", ("uint8", "uint8", "5"), ("N, 7", "M, 7", "M, 7"))
    few = {name: array[:2] for name, array in feeds_of(np.uint8, 3).items()}
    with pytest.raises(ModelError, match=r"Add node"):
        Simulator(model).run(few | {"aq": feeds_of(np.uint8, 3)["aq"]})


def test_a_table_is_made_when_it_saves_work(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(kinds: Any) -> list[Array]:
        made.append(len(kinds))
        return every(kinds)

    every = code_tables._all_codes
    monkeypatch.setattr(code_tables, "_all_codes", counted)
    simulator = Simulator(chain_model("r = Add(a, b)", ("uint8", "uint8", "5")))
    for rows, tables in ((3, 0), (9363, 1), (3, 1), (9363, 1)):
        simulator.run(feeds_of(np.uint8, rows))
        assert len(made) == tables
