"""Models without a linear op, with other outputs than logits, or with operators off the path."""

import numpy as np

from tests.architectures.net import Net


def pools_only(net: Net) -> list[str]:
    """No linear op: pools, an Add, a Sigmoid."""
    x = net.input(3, 8, 8)
    y = net("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return [net("Sigmoid", net("Add", y, net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])))]


def elementwise_only(net: Net) -> list[str]:
    """No linear op, nothing to quantize: two IEEE operations."""
    return [net("Relu", net("Mul", net.input(3, 8, 8), net.constant(0.3)))]


def arg_max(net: Net) -> list[str]:
    """Integers as outputs, beside the logits that they come from."""
    x = net.classify(net.conv_relu(net.input(3, 8, 8), 3, 8), 8)
    return [net("ArgMax", x, axis=1, keepdims=0), x]


def softmax_classifier(net: Net) -> list[str]:
    """Softmax behind a Gemm."""
    x = net.classify(net.conv_relu(net.input(3, 8, 8), 3, 8), 8)
    return [net("Softmax", x, axis=-1)]


def logarithm_of_shares(net: Net) -> list[str]:
    """LogSoftmax behind a Gemm."""
    x = net.classify(net.conv_relu(net.input(3, 6, 6), 3, 4), 4)
    return [net("LogSoftmax", x, axis=-1)]


def softmax_in_the_middle(net: Net) -> list[str]:
    """Spatial attention: Softmax over channels, then over positions, multiplied and convolved."""
    x = net.conv_relu(net.input(3, 8, 8), 3, 4)
    y = net("Mul", x, net("Softmax", net.conv(x, 4, 4), axis=1))
    flat = net("Reshape", net.conv(y, 4, 1, 1), net.constant([0, 1, 64]))
    z = net("Reshape", net("Softmax", flat, axis=2), net.constant([0, 1, 8, 8]))
    return [net.classify(net.conv_relu(net("Mul", y, z), 4, 8), 8)]


def functions(net: Net) -> list[str]:
    """A function behind every Conv, and one behind an Add and behind a pool."""
    x = net.input(3, 8, 8)
    count = 3
    for op_type in ("Elu", "Gelu", "Tanh", "Softplus", "Selu", "Mish", "Softsign", "Erf"):
        x, count = net(op_type, net.conv(x, count, 4)), 4
    x = net("Tanh", net("Add", net.conv(x, 4, 4), x))
    x = net("Sigmoid", net("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))
    return [net("Exp", net.classify(x, 4))]


def function_of_input(net: Net) -> list[str]:
    """Functions that read the input, and a chain of two of them."""
    x = net("Tanh", net.input(4, 8, 8))
    y = net("Sigmoid", net("Exp", net("Mul", x, net.constant(0.5))))
    return [net.classify(net.conv_relu(net("Mul", x, y), 4, 8), 8)]


def reductions(net: Net) -> list[str]:
    """ReduceMean, ReduceSum, ReduceMax with and without kept axes, between Convs."""
    x = net.conv_relu(net.input(4, 8, 8), 4, 8)
    a = net("ReduceMean", x, net.constant([-1]), keepdims=1)
    b = net("ReduceMax", x, net.constant([2]), keepdims=1)
    y = net.conv_relu(net("Mul", net("Add", x, a), b), 8, 8)
    z = net("ReduceSum", y, net.constant([2]), keepdims=0)
    z = net.conv_relu(z, 8, 8, dims=1)
    z = net("GlobalMaxPool", z)
    return [net.dense(net("Squeeze", z, net.constant([2])), 8, 4)]


def scaled_and_shifted(net: Net) -> list[str]:
    """Arithmetic with constants of every shape, in any order of the operands."""
    x = net.conv(net.input(4, 8, 8), 4, 4)
    x = net("Sub", net.constant(1.0), x)
    x = net("Mul", net.weight(4, 1, 1), x)
    x = net("Div", net("Add", x, net.weight(8)), net.constant(3.0))
    y = net("Neg", net("Abs", net("Relu", x)))
    x = net("Div", net.constant(1.0), net("Add", net("Mul", x, x), net.constant(1.0)))
    return [net.classify(net.conv_relu(net("Concat", x, y, axis=1), 8, 8), 8)]


def odd_clips(net: Net) -> list[str]:
    """Limits on both sides of zero, one limit, none, an empty range, two in a row."""
    x = net.conv(net.input(4, 8, 8), 4, 8)
    x = net("Clip", x, net.constant(-0.5), net.constant(1.5))
    x = net.conv(net("Clip", net("Relu", x), "", net.constant(1.0)), 8, 8)
    x = net.conv(net("Clip", x, net.constant(0.25)), 8, 8)
    x = net("Clip", net("Max", x, net.constant(-1.0)), net.constant(-2.0), net.constant(0.5))
    return [net.classify(net("Relu", net("Relu", net.conv(x, 8, 8))), 8)]


def conv_3d(net: Net) -> list[str]:
    """Convs and pools over volumes."""
    x = net.conv_relu(net.input(2, 6, 6, 6), 2, 4, dims=3)
    x = net("MaxPool", x, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    return [net.classify(net.conv_relu(x, 4, 6, dims=3), 6)]


def logits_read_twice(net: Net) -> list[str]:
    """A Gemm's result is an output and goes on into another Gemm."""
    x = net("Flatten", net.input(2, 4, 4))
    y = net.dense(x, 32, 6)
    return [y, net.dense(net("Relu", y), 6, 4)]


def twins(net: Net) -> list[str]:
    """One encoder on two images (tied weights), compared by a difference and a product."""
    w, b = net.weight(8, 3, 3, 3, size=0.25), net.weight(8, size=0.1)
    parts = []
    for name in ("left", "right"):
        x = net("Relu", net("Conv", net.input(3, 8, 8, name=name), w, b, pads=[1, 1, 1, 1]))
        parts.append(net("Flatten", net("GlobalAveragePool", x)))
    both = [net("Abs", net("Sub", *parts)), net("Mul", *parts)]
    return [net("Sigmoid", net.dense(net("Concat", *both, axis=1), 16, 1))]


def where_and_compare(net: Net) -> list[str]:
    """A choice between values, by a comparison of activations, in the float tail."""
    x = net.classify(net.conv_relu(net.input(3, 8, 8), 3, 8), 8)
    return [net("Where", net("Greater", x, net.constant(0.0)), x, net("Neg", x))]


def odd_resize(net: Net) -> list[str]:
    """Nearest by odd factors and to fixed sizes; linear by 4, align_corners on powers of two."""
    x = net.conv_relu(net.input(3, 5, 5), 3, 4)
    x = net("Resize", x, "", net.constant([1.0, 1.0, 3.0, 1.6]), mode="nearest")
    x = net.conv_relu(x, 4, 4, strides=[3, 2])
    x = net("Resize", x, "", net.constant([1.0, 1.0, 4.0, 2.0]), mode="linear")
    return [net.classify(net.conv_relu(x, 4, 8), 8)]


def large_pool(net: Net) -> list[str]:
    """A window that covers the image, written as AveragePool."""
    x = net.conv_relu(net.input(3, 9, 7), 3, 8)
    x = net("AveragePool", x, kernel_shape=[9, 7])
    return [net.dense(net("Reshape", x, net.constant([-1, 8])), 8, 4)]


def gather_rows(net: Net) -> list[str]:
    """One token by a scalar index; a scalar index along the channels."""
    x = net.input(6, 16)
    y = net("Add", net("MatMul", x, net.weight(16, 16, size=0.3)), net.weight(16))
    first = net("Gather", net("Relu", y), net.constant(np.int64(0)), axis=1)
    return [net.dense(first, 16, 5)]


def more_moves(net: Net) -> list[str]:
    """SpaceToDepth, reflecting and repeating Pads, ReduceMin, MaxPool with dilations, Where."""
    x = net("SpaceToDepth", net.input(2, 8, 8), blocksize=2)
    x = net.conv(x, 8, 8)
    x = net("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    x = net("Pad", x, net.constant([0, 0, 0, 1, 0, 0, 0, 1]), mode="edge")
    x = net("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2])
    y = net("ReduceMin", net.conv(x, 8, 8), net.constant([3]), keepdims=0)
    y = net.conv(y, 8, 8, dims=1)
    return [net.dense(net("Flatten", net("GlobalMaxPool", y)), 8, 4)]


def pooled_features(net: Net) -> list[str]:
    """No Gemm at the end: the mean of a residual sum is the output, and its norm."""
    x = net.conv_relu(net.input(3, 8, 8), 3, 8)
    x = net("Relu", net("Add", x, net.conv(x, 8, 8)))
    mean = net("Flatten", net("GlobalAveragePool", x))
    norm = net("Sqrt", net("ReduceSum", net("Mul", mean, mean), net.constant([1])))
    return [mean, net("Div", mean, norm)]


def tail_functions(net: Net) -> list[str]:
    """Functions of sums and of each other in the float tail, and of a Gemm's slices."""
    x = net.classify(net.conv_relu(net.input(3, 8, 8), 3, 8), 8, 8)
    left, right = net.split("Split", 2, x, axis=1, num_outputs=2)
    y = net("Tanh", net("Mul", net("Sigmoid", left), right))
    return [net("Exp", net("Neg", y)), net("Log", net("Softplus", net("Add", left, right)))]


def written_elementary(net: Net) -> list[str]:
    """Pow by 2, 0.5 and -1, Mean of three, ReduceL2 and the division by it."""
    x = net.conv_relu(net.input(3, 6, 6), 3, 4)
    x = net("Mean", x, net("Pow", x, net.constant(2.0)), net("Pow", x, net.constant(0.5)))
    below = net("Add", net.conv_relu(x, 4, 4), net.constant(0.5))
    x = net.classify(net("Mul", net.conv(x, 4, 4), net("Pow", below, net.constant(-1.0))), 4)
    return [net("Div", x, net("ReduceL2", x, net.constant([1]))), x]


def limited_tail(net: Net) -> list[str]:
    """Limits behind a Gemm in the float tail, in front of something else."""
    x = net.classify(net.conv_relu(net.input(3, 6, 6), 3, 4), 4, 6)
    y = net.classify(net.conv_relu(net.input(3, 6, 6), 3, 4), 4, 6)
    z = net("Clip", y, net.constant(-0.5), net.constant(0.75))
    return [net("Neg", net("Relu", x)), net("Mul", z, net.constant(0.3))]


def run_time_products(net: Net) -> list[str]:
    """A Gram matrix of a feature map, and a product of two inputs."""
    a, b = net.input(6, 8, name="a"), net.input(8, 5, name="b")
    c = net("MatMul", a, b)
    return [net("Relu", net("MatMul", c, net("Transpose", c, perm=[0, 2, 1])))]


def spatial_attention(net: Net) -> list[str]:
    """Mean and maximum over the channels, a 7x7 Conv, Sigmoid, Mul over all channels."""
    x = net.conv(net.input(3, 8, 8), 3, 4)
    parts = [net(op, x, net.constant([1]), keepdims=1) for op in ("ReduceMean", "ReduceMax")]
    gate = net("Sigmoid", net.conv(net("Concat", *parts, axis=1), 2, 1, 7))
    return [net.classify(net("Mul", x, gate), 4)]


def transposed_convs(net: Net) -> list[str]:
    """ConvTranspose with pads, output padding and groups, a Tanh at the end."""
    x = net.conv_relu(net.input(3, 6, 6), 3, 4)
    w, b = net.weight(4, 4, 3, 3, size=0.2), net.weight(4, size=0.1)
    pads = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    x = net("Relu", net("ConvTranspose", x, w, b, output_padding=[1, 1], **pads))
    x = net("ConvTranspose", x, net.weight(4, 2, 4, 4, size=0.2), group=2, **pads)
    return [net("Tanh", x)]


def outputs_alike(net: Net) -> list[str]:
    """One value under two names, a constant as an output, an input that nobody reads."""
    net.input(4, name="unused")
    x = net.classify(net.conv_relu(net.input(3, 6, 6), 3, 4), 4)
    return [x, net("Identity", x), net("Identity", net.constant([1.0, 2.0]))]
