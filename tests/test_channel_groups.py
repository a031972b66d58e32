"""Groups of channels: assigned once, and, for reference, for each instance."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgeq.channel_groups import grouped_shifts, instance_errors, learn_groups
from edgeq.channel_shifts import channel_errors
from edgeq.graph import consumers
from edgeq.load import load_model
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import FORMATS, QType
from edgeq.simulate import Simulator

ZOO = Path(__file__).parent.parent.parent / "shared" / "zoo"
WIDTHS = np.array([1.0, 8.0, 1.1, 7.5, 30.0, 29.0])


def spread(widths=WIDTHS, count=3):
    ends = np.array([-1, 1.0]) * np.asarray(widths)[None, :, None]
    return np.repeat(ends, count, 0).astype(np.float32)


def test_channels_of_like_ranges_share_a_group():
    limits, found = learn_groups(spread(), 3)
    assert found.shape == (1, 6)
    assert found[0, 0] == found[0, 2] and found[0, 1] == found[0, 3] and found[0, 4] == found[0, 5]
    assert np.allclose(np.sort(limits[:, 1]), [1.05, 7.75, 29.5])
    assert np.array_equal(limits[:, 0], -limits[:, 1])


def test_scales_of_groups_are_powers_of_two():
    shifts = grouped_shifts(spread(), groups=3, depth=3, zero_share=0.5)
    assert shifts.tolist() == [0, 2, 0, 2, 3, 3]


def test_no_channel_is_cut_off():
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(4, 20, 30)) * rng.uniform(0.1, 9, 20)[:, None]).astype(np.float32)
    peak = np.abs(samples).max(axis=(0, 2))
    for groups in (1, 2, 5, 20):
        shifts = grouped_shifts(samples, groups=groups, depth=3, zero_share=0.5)
        assert (peak <= peak.max() * 2.0 ** (shifts - 3)).all()
    assert np.array_equal(shifts == 3, peak > peak.max() / 2)  # a group for each channel


def test_nothing_but_zeros_has_no_shifts():
    zeros = np.zeros((2, 3, 4), np.float32)
    assert not grouped_shifts(zeros, groups=2, depth=3, zero_share=0.5).any()


def test_instances_may_assign_a_channel_differently():
    widths = [[1, 8.0], [8.0, 1]]
    samples = np.concatenate([spread(w, 1) for w in widths])
    limits, found = learn_groups(samples, 2, by_instance=True)
    assert found.tolist() == [[0, 1], [1, 0]] or found.tolist() == [[1, 0], [0, 1]]
    assert np.allclose(instance_errors(samples, limits, FORMATS["uint8"]), 0, atol=1e-3)


def tensors():
    """Yield what linear ops read in a vision transformer: (images, channels, tokens)."""
    path = ZOO / "vit-mnist"
    if not path.is_dir():
        pytest.skip(f"{path} is absent")
    model = load_model(path / "model.onnx").model
    made = [
        str(node.outputs[0].name)
        for node in model.graph
        if node.op_type == "LayerNormalization"
        and any(reader.op_type in ("MatMul", "Gemm") for reader in consumers(node.outputs[0]))
    ]
    simulator = Simulator(model)
    ((name, affine),) = json.loads((path / "case.json").read_text())["inputs"].items()
    with np.load(path / "data.npz") as data:
        images = data["calib_input"][:16] * affine["scale"] + affine["offset"]
    found = [simulator.run({name: image[None].astype(np.float32)}, made) for image in images]
    for value in islice(made, 6):
        yield np.concatenate([feed[value] for feed in found]).swapaxes(1, 2)


def per_tensor(samples, qtype: QType) -> QParams:
    low, high = float(samples.min()), float(samples.max())
    scale = np.array((high - low) / (qtype.qmax - qtype.qmin), np.float32)
    return QParams(qtype, scale, np.array(round(-low / float(scale)), np.int32))


@pytest.mark.zoo
def test_static_groups_win_part_of_what_dynamic_ones_do():
    """Mean squared errors, in dB below one scale: 4 bits, 8 groups."""
    qtype, gains = FORMATS["uint4"], []
    for samples in tensors():
        plain = per_tensor(samples, qtype)
        share = float(plain.zero_point) / qtype.qmax
        shifts = grouped_shifts(samples, groups=8, depth=3, zero_share=share)
        scaled = samples / np.exp2(shifts).astype(np.float32)[:, None]
        static = channel_errors(scaled, per_tensor(scaled, qtype)) @ np.exp2(2.0 * shifts)
        limits, _ = learn_groups(samples, 8, by_instance=True)
        dynamic = instance_errors(samples, limits, qtype).mean() * samples.shape[1]
        one = channel_errors(samples, plain).sum()
        gains.append([10 * np.log10(one / e) for e in (static, dynamic)])
    static, dynamic = np.mean(gains, 0)
    print(f"static {static:.2f} dB, dynamic {dynamic:.2f} dB")
    assert 0 <= static < dynamic
