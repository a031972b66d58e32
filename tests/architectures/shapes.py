"""Models whose graph is what is hard about them: shapes, readers, constants, odd operators."""

from tests.architectures.net import Net


def two_inputs(net: Net) -> list[str]:
    """Sub, Mul, Div, Sum of three, Max and Min of two inputs."""
    a, b = net.input(4, 8, 8, name="a"), net.input(4, 8, 8, name="b", size=2.0)
    bounded = net("Add", net("Abs", b), net.constant(1.0))
    parts = [
        net("Sub", a, b),
        net("Mul", a, b),
        net("Div", a, bounded),
        net("Sum", a, b, net.conv(a, 4, 4)),
        net("Max", a, b),
        net("Min", a, b),
    ]
    return [net.classify(net.conv_relu(net("Concat", *parts, axis=1), 24, 8), 8)]


def mlp(net: Net) -> list[str]:
    """MatMul + Add on vectors."""
    x = net.input(16)
    x = net("Relu", net("Add", net("MatMul", x, net.weight(16, 24, size=0.3)), net.weight(24)))
    return [net("Add", net.weight(5), net("MatMul", x, net.weight(24, 5, size=0.2)))]


def tokens(net: Net) -> list[str]:
    """MatMul + Add on sequences of tokens, a residual, a mean over the tokens."""
    x = net.input(6, 16)
    y = net("Relu", net("Add", net("MatMul", x, net.weight(16, 24, size=0.3)), net.weight(24)))
    y = net("Add", net("MatMul", y, net.weight(24, 16, size=0.2)), net.weight(16))
    z = net("ReduceMean", net("Add", x, y), net.constant([1]), keepdims=0)
    return [net("MatMul", z, net.weight(16, 5, size=0.3))]


def dense_only(net: Net) -> list[str]:
    """Flatten and Gemm, weights in either order."""
    x = net("Flatten", net.input(2, 4, 4))
    w, bias = net.weight(32, 16, size=0.2), net.weight(1, 16)
    x = net("Relu", net("Gemm", x, w, bias, alpha=0.5, beta=2.0))
    return [net.dense(x, 16, 5)]


def keyword(net: Net) -> list[str]:
    """Convs over time."""
    x = net.conv_relu(net.input(4, 20), 4, 8, 5, dims=1, strides=[2])
    x = net.conv_relu(x, 8, 8, 3, dims=1, group=8)
    x = net.conv_relu(x, 8, 8, 1, dims=1)
    x = net("MaxPool", x, kernel_shape=[2], strides=[2])
    return [net.classify(net.conv_relu(x, 8, 8, 3, dims=1, dilations=[2], pads=[2, 2]), 8)]


def padded(net: Net) -> list[str]:
    """Groups, dilations, strides and pads that differ per side; auto_pad; a Pad in front."""
    x = net("Pad", net.input(4, 11, 9), net.constant([0, 0, 1, 0, 0, 0, 0, 2]))
    x = net.conv_relu(x, 4, 8, pads=[0, 1, 2, 1], group=2)
    x = net.conv_relu(x, 8, 8, pads=[2, 0, 1, 3], dilations=[2, 1], strides=[1, 2])
    w = net.weight(8, 8, 2, 3, size=0.2)
    x = net("Relu", net("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 1]))
    x = net("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1]), net.constant(0.5))
    return [net.classify(net.conv_relu(x, 8, 8), 8)]


def input_is_output(net: Net) -> list[str]:
    """The input is an output as well."""
    x = net.input(3, 8, 8)
    return [net.classify(net.conv_relu(x, 3, 8), 8), x]


def input_branches(net: Net) -> list[str]:
    """The input feeds a Conv, an Add and a pool."""
    x = net.input(4, 8, 8)
    y = net("Add", net.conv(x, 4, 4), x)
    z = net("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return [net.classify(net.conv_relu(net("Concat", y, z, axis=1), 8, 8), 8)]


def constant_branch(net: Net) -> list[str]:
    """A branch of constants alone, added and concatenated."""
    x = net.conv_relu(net.input(3, 8, 8), 3, 4)
    k = net("Relu", net("Add", net.weight(1, 4, 8, 8), net.weight(4, 1, 1)))
    y = net("Add", x, k)
    z = net("Mul", net.conv(y, 4, 4), net("Sigmoid", k))
    return [net.classify(net.conv_relu(z, 4, 8), 8)]


def relu_is_output(net: Net) -> list[str]:
    """Features are outputs: a Relu's, and a Conv's that a Relu reads."""
    x = net.conv(net.input(3, 8, 8), 3, 8)
    y = net("Relu", x)
    z = net.conv_relu(y, 8, 8)
    return [y, x, net.classify(z, 8)]


def scalar_output(net: Net) -> list[str]:
    """Means over everything, with and without axes that stay."""
    x = net.conv_relu(net.input(3, 8, 8), 3, 8)
    mean = net("ReduceMean", x, net.constant([1, 2, 3]), keepdims=0)
    total = net("ReduceSum", x, net.constant([2, 3]), keepdims=0)
    return [mean, total, net("ReduceMax", x, net.constant([1, 2, 3]), keepdims=0)]


def all_moves(net: Net) -> list[str]:
    """Gather, Expand, Squeeze, Unsqueeze, Slice, Tile, Identity, Dropout, Clip without limits."""
    x = net.conv(net.input(4, 8, 8), 4, 8)
    x = net("Identity", net("Identity", net("Dropout", net("Clip", x))))
    x = net("Gather", x, net.constant([0, 2, 5, 7]), axis=1)
    one = net("Slice", x, *[net.constant([v]) for v in (0, 1, 1)])
    wide = net("Expand", one, net.constant([1, 4, 8, 8]))
    y = net.conv_relu(net("Add", x, wide), 4, 4)
    y = net("Squeeze", net("Unsqueeze", y, net.constant([1])), net.constant([1]))
    y = net("Slice", y, *[net.constant([v]) for v in (7, -9, 2, -2)])
    y = net("Tile", y, net.constant([1, 1, 2, 1]))
    return [net("Identity", net.classify(net.conv(y, 4, 8), 8))]


def normalised_first(net: Net) -> list[str]:
    """BatchNormalization of the input, read by a Conv and a shortcut."""
    x = net.batch_norm(net.input(4, 8, 8), 4)
    return [net.classify(net("Relu", net("Add", net.conv(x, 4, 4), x)), 4)]


def tied_weights(net: Net) -> list[str]:
    """Two Convs share weights and bias; two Gemms share a matrix."""
    w, b = net.weight(8, 8, 3, 3, size=0.2), net.weight(8, size=0.1)
    x = net.conv_relu(net.input(3, 8, 8), 3, 8)
    for _ in range(2):
        x = net("Relu", net("Conv", x, w, b, pads=[1, 1, 1, 1]))
    x = net("Flatten", net("GlobalAveragePool", x))
    m = net.weight(8, 8, size=0.5)
    return [net("MatMul", net("Relu", net("MatMul", x, m)), m)]


def dead_channel(net: Net) -> list[str]:
    """Channels whose weights, or weights and bias, are zero."""
    w = net.generator.normal(0, 0.3, (8, 3, 3, 3))
    b = net.generator.normal(0, 0.3, 8)
    w[[1, 4]] = 0
    b[4] = 0
    x = net.input(3, 8, 8)
    x = net("Relu", net("Conv", x, net.constant(w), net.constant(b), pads=[1, 1, 1, 1]))
    return [net.classify(net.conv_relu(x, 8, 8), 8)]


def zero_activation(net: Net) -> list[str]:
    """An activation that is always 0: every bias is far below it."""
    x = net.input(3, 8, 8)
    w, b = net.weight(4, 3, 3, 3, size=0.1), net.constant([-50.0] * 4)
    zero = net("Relu", net("Conv", x, w, b, pads=[1, 1, 1, 1]))
    y = net("Add", net.conv(x, 3, 4), net.conv(zero, 4, 4))
    return [net.classify(net("Relu", y), 4)]


def unequal_operands(net: Net) -> list[str]:
    """Add, Concat and Mul of values of 1e-4 and 1e3."""
    a, b = net.input(4, 8, 8, name="a", size=1e-4), net.input(4, 8, 8, name="b", size=1e3)
    x, y = net.conv_relu(a, 4, 4), net.conv_relu(b, 4, 4)
    z = net("Concat", net("Add", x, y), net("Mul", x, y), axis=1)
    return [net.classify(net.conv_relu(z, 8, 8), 8)]


def squared(net: Net) -> list[str]:
    """A value times itself, and to the power of two by Mul; a sum of a value with itself."""
    x = net.conv(net.input(3, 8, 8), 3, 4)
    y = net("Add", net("Mul", x, x), net("Add", x, x))
    return [net.classify(net.conv_relu(y, 4, 8), 8)]


def attention(net: Net) -> list[str]:
    """MatMul of two values, Softmax between them, heads by Reshape and Transpose."""
    x = net.input(6, 8)
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        y = net("Add", net("MatMul", x, net.weight(8, 8, size=0.5)), net.weight(8, size=0.1))
        heads.append(net("Transpose", net("Reshape", y, net.constant([0, 6, 2, 4])), perm=perm))
    q, k, v = heads
    shares = net("Softmax", net("Mul", net("MatMul", q, k), net.constant(0.5)), axis=-1)
    y = net("Transpose", net("MatMul", shares, v), perm=[0, 2, 1, 3])
    y = net("Reshape", y, net.constant([0, 6, 8]))
    y = net("Add", x, net("MatMul", y, net.weight(8, 8, size=0.4)))
    return [net("MatMul", net("ReduceMean", y, net.constant([1]), keepdims=0), net.weight(8, 5))]


def recurrent_gates(net: Net) -> list[str]:
    """Unrolled gates: Sigmoid, Tanh, Mul and Add of states."""
    x, h = net.input(8, name="x"), net.input(8, name="h")
    both = net("Concat", x, h, axis=1)
    z = net("Sigmoid", net.dense(both, 16, 8))
    r = net("Sigmoid", net.dense(both, 16, 8))
    n = net("Tanh", net.dense(net("Concat", x, net("Mul", r, h), axis=1), 16, 8))
    keep = net("Mul", net("Sub", net.constant(1.0), z), n)
    new = net("Add", keep, net("Mul", z, h))
    return [new, net.dense(new, 8, 3)]
