"""What the simulator cannot run is refused, and named."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgeq.errors import DataError, ModelError, UnsupportedOperatorError
from edgeq.simulate import Simulator

Array = NDArray[Any]


def small() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 3] left, int64[2] right) => (float[N, 3] y, float c, int64[2] right) {
            c = Constant<value_float = 2.0>()
            z = Mul(left, c)
            unused = Exp(z)
            y = Relu(z)
        }"""
    )


GOOD = {"left": np.ones((4, 3), np.float32), "right": np.array([1, 2])}


def test_outputs_may_be_constants_and_inputs() -> None:
    found = Simulator(small()).run(GOOD)
    assert list(found) == ["y", "c", "right"]
    assert found["c"] == np.float32(2)
    assert found["right"].tolist() == [1, 2]


BAD_FEEDS = {
    "missing": ({"left": GOOD["left"]}, "input 'right' is missing"),
    "unknown": ({**GOOD, "lefft": GOOD["left"]}, "no input 'lefft' .did you mean 'left'"),
    "dtype": (
        {**GOOD, "left": np.ones((4, 3))},
        r"'left': expected .*float32.*found float64\[4, 3",
    ),
    "rank": ({**GOOD, "left": np.ones(3, np.float32)}, r"'left': expected .*found float32\[3\]"),
    "size": ({**GOOD, "right": np.arange(3)}, r"'right': expected .*int64\[2\], found int64\[3\]"),
}


@pytest.mark.parametrize("name", BAD_FEEDS)
def test_bad_feeds_are_named(name: str) -> None:
    feeds, message = BAD_FEEDS[name]
    with pytest.raises(DataError, match=message):
        Simulator(small()).run(feeds)


def test_an_unknown_tap_is_named() -> None:
    with pytest.raises(DataError, match=r"no value 'zz' \(did you mean 'z'"):
        Simulator(small()).run(GOOD, taps=["zz"])


UNSUPPORTED = {
    "an operator": ("y = Det(x)", "node.*no definition of operator Det"),
    "a domain": ("y = com.acme.Relu(x)", "no definition of operator com.acme.Relu"),
    "an attribute's value": ('y = Resize<mode="cubic">(x, , s)', "mode = 'cubic'.*only 'nearest'"),
    "a third output": ("y, i = MaxPool<kernel_shape=[1, 1]>(x)", "output 2 of MaxPool"),
    "an unknown attribute": ("y = Relu<alpha=1.0>(x)", "attribute 'alpha'"),
    "a missing attribute": ("y = Concat(x, x)", "attribute 'axis' is missing"),
    "too many inputs": ("y = Relu(x, x)", "2 inputs, 1 to 1 expected"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_definition_is_refused_at_once(name: str) -> None:
    line, message = UNSUPPORTED[name]
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21, "com.acme": 1]>
        g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) <float[4] s = {{1, 1, 2, 2}}> {{
            {line}
        }}"""
    )
    with pytest.raises(UnsupportedOperatorError, match=message):
        Simulator(model)


def test_shapes_that_do_not_fit_name_the_node() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N] x, float[M] z) => (float[K] y) { [adder] y = Add(x, z) }"""
    )
    feeds = {"x": np.ones(3, np.float32), "z": np.ones(4, np.float32)}
    with pytest.raises(ModelError, match=r"Add node .*output y.*broadcast"):
        Simulator(model).run(feeds)


def test_the_simulator_does_not_import_a_runtime() -> None:
    import subprocess
    import sys

    code = "import sys, edgeq.simulate; print(*{'onnxruntime', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
