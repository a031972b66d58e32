"""What cannot be the same on every machine is refused, with the name of the node and a way out."""

from pathlib import Path

import pytest

import edgeq
from edgeq.errors import EdgeqError, UnsupportedOperatorError, VerificationError
from tests.architectures.net import Net
from tests.test_architectures import Architecture


def image(net: Net) -> str:
    return net.conv_relu(net.input(3, 6, 6), 3, 4)


def odd_factor(net: Net) -> list[str]:
    scales = net.constant([1.0, 1.0, 3.0, 3.0])
    return [net.conv(net("Resize", image(net), "", scales, mode="linear"), 4, 4)]


def aligned_corners(net: Net) -> list[str]:
    sizes = net.constant([1, 4, 11, 11])
    how = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return [net.conv(net("Resize", image(net), "", "", sizes, **how), 4, 4)]


def cubic(net: Net) -> list[str]:
    scales = net.constant([1.0, 1.0, 2.0, 2.0])
    return [net.conv(net("Resize", image(net), "", scales, mode="cubic"), 4, 4)]


def mean_over_samples(net: Net) -> list[str]:
    return [net("ReduceMean", image(net), keepdims=0)]


def recurrent(net: Net) -> list[str]:
    x = net("Transpose", net.input(5, 4), perm=[1, 0, 2])
    weights = net.weight(1, 32, 4), net.weight(1, 32, 8)
    _, last, _ = net.split("LSTM", 3, x, *weights, hidden_size=8)
    return [net.dense(net("Squeeze", last, net.constant([0])), 8, 3)]


def running_sum(net: Net) -> list[str]:
    return [net("CumSum", net.classify(image(net), 4), net.constant(1))]


PERMIT = "allow-unproven"
REFUSED: dict[Architecture, tuple[type[EdgeqError], str, str]] = {
    odd_factor: (VerificationError, "Resize 'resize2': .*no known power of two", PERMIT),
    aligned_corners: (VerificationError, "Resize 'resize2': .*align_corners .*not dyadic", PERMIT),
    mean_over_samples: (VerificationError, "'reducemean2': .*--max-dim", PERMIT),
    running_sum: (VerificationError, "'cumsum5': .*order of additions", PERMIT),
    cubic: (UnsupportedOperatorError, "'resize2' .*'cubic' is not supported", "only 'nearest'"),
    recurrent: (UnsupportedOperatorError, "'lstm1' .*no definition of operator LSTM", "cut the"),
}


@pytest.mark.parametrize("build", REFUSED)
def test_refused_with_the_way_out(build: Architecture, tmp_path: Path) -> None:
    kind, reason, way_out = REFUSED[build]
    net = Net()
    model = net.model(build(net))
    with pytest.raises(kind, match=reason) as caught:
        edgeq.compile(model, calibration=net.feeds(4), output=tmp_path / "bundle")
    assert way_out in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("build", [b for b, (_, _, way) in REFUSED.items() if way == PERMIT])
def test_the_way_out_works(build: Architecture, tmp_path: Path) -> None:
    net = Net()
    model = net.model(build(net))
    bundle = edgeq.compile(
        model, calibration=net.feeds(4), output=tmp_path / "bundle", allow_unproven=["*"]
    )
    assert len(bundle.manifest.certificate.unproven) == 1
    edgeq.check(bundle, taps=True).raise_for_mismatch()
