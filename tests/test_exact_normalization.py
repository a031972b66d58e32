"""Normalisations of codes: the bits of every runtime setting, near the ideal, proven."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeq.certify import certify
from edgeq.errors import ModelError
from edgeq.graph import check, to_bytes
from edgeq.simulate import Simulator
from tests.normalized import CASES, TARGET, Case, layer

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def options(level: str, threads: int) -> onnxruntime.SessionOptions:
    result = onnxruntime.SessionOptions()
    result.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    result.intra_op_num_threads = threads
    result.log_severity_level = 3
    return result


def by_onnxruntime(model: ir.Model, codes: NDArray[Any], level: str, threads: int) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(to_bytes(model), options(level, threads))
    (result,) = session.run(None, {"q": codes})
    return np.asarray(result)


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_onnx_runtime(name):
    case = CASES[name]
    model = case.exact()
    check(model)
    simulator = Simulator(model)
    compared = 0
    for codes in case.feeds():
        expected = simulator.run({"q": codes})["p"]
        for level in LEVELS:
            for threads in (1, 2):
                found = by_onnxruntime(model, codes, level, threads)
                assert found.tobytes() == expected.tobytes(), (level, threads)
                compared += found.size
    assert compared == 32 * np.prod(case.sizes)


@pytest.mark.parametrize("name", CASES)
def test_every_node_is_proven(name):
    found = certify(CASES[name].exact(), TARGET.capabilities)
    assert found.unproven == ()
    sums = [proof.kind for proof in found.proofs if proof.op_type in ("ReduceSum", "ReduceMean")]
    assert len(sums) >= 1 + CASES[name].centered and set(sums) <= {"exact sum", "integer"}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_an_ideal_evaluation(name):
    case = CASES[name]
    simulator = Simulator(case.exact())
    for codes in case.feeds():
        ideal, found = case.ideal(codes), simulator.run({"q": codes})["p"]
        defined = np.isfinite(ideal)  # 0 / 0 where epsilon is 0
        assert np.all(found[~defined] == 0)
        wanted = np.clip(np.rint(ideal) + 117, 0, 255)
        distance = np.abs(found.astype(np.float64) - wanted)[defined]
        assert distance.max(initial=0) <= 1
        # float32 rounds a mean near 2**15 to 2**-9 steps: 1 in 512 of a narrow row's deviation.
        from_tie = np.abs(ideal - np.floor(ideal) - 0.5)[defined]
        assert np.all(from_tie[distance > 0] < 5e-3)
        assert distance.sum() <= 2 + 2e-3 * distance.size


@pytest.mark.parametrize(
    "name", ["LayerNormalization, N = 48", "RMS, 16 bits", "GroupNormalization"]
)
def test_nothing_is_fused(name, tmp_path):
    model = CASES[name].exact()
    wanted = Counter(node.op_type for node in model.graph)
    for level in LEVELS:
        settings = options(level, 1)
        settings.optimized_model_filepath = str(tmp_path / f"{level}.onnx")
        onnxruntime.InferenceSession(to_bytes(model), settings)
        optimized = onnx.load(tmp_path / f"{level}.onnx")
        assert Counter(node.op_type for node in optimized.graph.node) == wanted, level


def test_wide_types_are_kept_for_few_elements():
    model = layer(1024).exact()
    wide = [node.outputs[0] for node in model.graph if node.outputs[0].dtype == ir.DataType.DOUBLE]
    shapes = [list(value.shape)[1:] for value in wide if value.shape is not None]
    assert len(shapes) > 5 and shapes.count([4]) == 1 and shapes.count([1]) == len(shapes) - 1


def test_a_row_that_float64_cannot_sum_is_summed_in_pieces():
    length = 2**22
    model = Case(layer(1).nodes, (1, length), (length,), qtype="uint16", gamma="ones").exact()
    assert ir.DataType.INT64 in {
        n.outputs[0].dtype for n in model.graph if n.op_type == "ReduceSum"
    }
    assert certify(model, TARGET.capabilities).unproven == ()
    codes = np.full((1, length), 65535, np.uint16)
    codes[0, ::2] = 0
    expected = Simulator(model).run({"q": codes})["p"]
    assert expected.tobytes() == by_onnxruntime(model, codes, LEVELS[-1], 2).tobytes()
    assert sorted(np.unique(expected)) == [90, 144]  # one standard deviation from the mean


@pytest.mark.parametrize("name", ["LayerNormalization, N = 1021", "GroupNormalization", "RMS"])
def test_an_empty_batch_gives_an_empty_result(name):
    model, sizes = CASES[name].exact(), CASES[name].sizes
    codes = np.zeros((0, *sizes[1:]), np.uint8)
    assert by_onnxruntime(model, codes, LEVELS[-1], 1).shape == codes.shape
    assert Simulator(model).run({"q": codes})["p"].shape == codes.shape


def test_rows_beyond_int64_are_refused():
    case = Case(layer(1).nodes, (2, 2**31), (1,), qtype="uint16")
    with pytest.raises(ModelError, match=r"int64 cannot hold .* up to 2147483648 elements"):
        case.exact()


def test_sizes_without_a_name_bound_a_row_together():
    case = CASES["GroupNormalization, nameless sizes"]
    sums = [node.inputs[0] for node in case.exact().graph if node.op_type == "ReduceSum"]
    assert {str(x.shape[-1]) for x in sums if x is not None and x.shape} == {"axis_2*axis_3"}


def test_a_bound_that_is_exceeded_is_seen():
    """Nodes of the exact form for rows of 48 elements, made to sum 4800."""
    model = layer(48, qtype="uint16").exact()
    (codes,) = model.graph.inputs
    codes.shape = ir.Shape([3, 480_000])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    found = certify(ir.from_proto(proto), TARGET.capabilities)
    assert [p.op_type for p in found.unproven] == ["ReduceSum"]
    assert "beyond 2**24" in found.unproven[0].detail
