"""Histograms of float and quantized values over bins of whole codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.fidelity import FidelityMeter, count_codes
from edgeq.histogram import GrowingHistogram
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import FORMATS, INT8, UINT8, UINT16
from edgeq.value_histogram import BEYOND, histogram_shares, value_histogram


def found(values, qparams):
    values = np.asarray(values, np.float32)
    histogram = GrowingHistogram()
    histogram.add(values)
    codes = count_codes(qparams.quantize(values))
    span = float(values.min()), float(values.max())
    return value_histogram("t", histogram.view(), span, codes, qparams)


def per_tensor(qtype, scale, zero_point=0):
    return QParams(qtype, np.array(scale, np.float32), np.array(zero_point, np.int32))


@pytest.mark.parametrize(
    ("codes", "part"),
    [(np.array([0, 255], np.uint8), 255), (np.array([-128, 127], np.int8), 255),
     (np.array([0, 65535], np.uint16), 255), (np.array([-(2**15), 2**15 - 1], np.int16), 255)],
)  # fmt: skip
def test_codes_are_counted_over_the_range_of_their_dtype(codes, part):
    counts = count_codes(codes)
    assert counts.shape == (256,) and counts[0] == counts[part] == 1 and counts.sum() == 2


def test_bins_are_whole_codes_and_show_what_is_clipped():
    result = found([-3.0, 0.0, 1.0, 1.0, 2.0, 9.0], per_tensor(INT8, 0.0625))
    assert result.width == 4 * 0.0625 and (result.clip_low, result.clip_high) == (-8.0, 7.9375)
    # 9 is one bin and a bit further out than the last code and its half step.
    assert len(result.real) == len(result.quantized) == 64 + 5
    assert result.low == -8.0 - 0.03125
    assert result.clipped == pytest.approx(100 / 6, rel=1e-5)
    assert sum(result.real) == pytest.approx(100) and sum(result.quantized) == pytest.approx(100)
    last_code = int((result.clip_high - result.low) // result.width)
    assert result.quantized[last_code] == pytest.approx(100 / 6, rel=1e-5)
    assert result.real[last_code] == 0 and sum(result.real[last_code + 1 :]) > 16
    zero = int((0 - result.low) // result.width)
    assert result.real[zero] == result.quantized[zero] == pytest.approx(100 / 6, rel=1e-5)


def test_values_far_out_count_in_the_last_bin():
    result = found([0.0, 1.0, 20.0], per_tensor(UINT8, 0.01))
    assert len(result.real) == 64 + BEYOND
    assert result.real[-1] == pytest.approx(100 / 3, rel=1e-5) and result.seen_high == 20


@given(
    st.sampled_from(["int8", "uint8", "uint16", "int16", "uint6", "uint4"]),
    st.integers(-6, 2),
    st.integers(0, 2**32 - 1),
)
def test_shares_add_up_and_meet_where_nothing_is_clipped(name, exponent, seed):
    qtype = FORMATS.get(name, UINT16)
    qparams = per_tensor(qtype, 2.0**exponent, (qtype.qmin + qtype.qmax) // 2)
    low, high = qparams.range
    values = np.random.default_rng(seed).uniform(low, high, 500).astype(np.float32)
    result = found(values, qparams)
    assert sum(result.real) == pytest.approx(100, abs=1e-3)
    assert sum(result.quantized) == pytest.approx(100, abs=1e-3)
    assert result.clipped == pytest.approx(0, abs=1e-9) and len(result.real) <= 64
    # Both lie alike: no bin is off by more than what two bins of the histogram hold.
    apart = np.abs(np.cumsum(result.real) - np.cumsum(result.quantized))
    assert apart.max() < 5


def test_zeros_have_a_place():
    histogram = GrowingHistogram()
    histogram.add(np.array([0, 0, 0, 1], np.float32))
    shares = histogram_shares(histogram.view(), np.array([-0.5, 0.5, 2.0]))
    assert shares.tolist() == [75.0, 25.0]


def test_meters_count_codes():
    meter = FidelityMeter("t", per_tensor(UINT8, 0.5))
    meter.add(np.zeros(3, np.float32), np.array([0, 7, 7], np.uint8))
    codes = meter.codes
    assert codes is not None and codes[0] == 1 and codes[7] == 2
    assert FidelityMeter("t").codes is None
