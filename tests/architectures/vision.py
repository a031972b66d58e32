"""Architectures of image models, small: what makes each of them different is all there."""

from tests.architectures.net import Net


def residual(net: Net) -> list[str]:
    """Pre-activation residual blocks: the sum is read by a BatchNormalization and the next Add."""
    x = net.conv(net.input(3, 12, 12), 3, 8)
    for _ in range(2):
        y = net("Relu", net.batch_norm(x, 8))
        y = net("Relu", net.batch_norm(net.conv(y, 8, 8, bias=False), 8))
        x = net("Add", net.conv(y, 8, 8), x)
    return [net.classify(net("Relu", net.batch_norm(x, 8)), 8)]


def residual_strided(net: Net) -> list[str]:
    """Post-activation blocks with a projection; a Relu with three readers."""
    x = net.conv_relu(net.input(3, 12, 12), 3, 8)
    y = net.conv_relu(x, 8, 16, strides=[2, 2])
    short = net.conv(x, 8, 16, 1, strides=[2, 2])
    pooled = net.conv(net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, 16, 1)
    y = net("Relu", net("Add", net("Add", net.conv(y, 16, 16), short), pooled))
    return [net.classify(y, 16)]


def densenet(net: Net) -> list[str]:
    """Concat chains; a value that both a Concat and an Add read."""
    features = [net.conv(net.input(3, 12, 12), 3, 8)]
    for count in range(3):
        x = net("Concat", *features, axis=1) if count else features[0]
        channels = 8 + 4 * count
        y = net("Relu", net.batch_norm(x, channels))
        features.append(net.conv(y, channels, 4))
    x = net("Concat", *features, axis=1)
    x = net("AveragePool", net.conv_relu(x, 20, 4, 1), kernel_shape=[2, 2], strides=[2, 2])
    last = net("AveragePool", features[-1], kernel_shape=[2, 2], strides=[2, 2])
    return [net.classify(net("Add", x, last), 4)]


def inception(net: Net) -> list[str]:
    """Pools of every kind in parallel branches."""
    x = net.conv_relu(net.input(3, 13, 13), 3, 6)
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    branches = [
        net.conv_relu(x, 6, 4, 1),
        net.conv_relu(net("AveragePool", x, count_include_pad=1, **pads), 6, 4, 1),
        net("AveragePool", x, count_include_pad=0, **pads),
        net("MaxPool", x, **pads),
        net.conv_relu(net.conv_relu(x, 6, 4, 1), 4, 4),
    ]
    y = net("Concat", *branches, axis=1)
    ceil = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    y = net("AveragePool", y, **ceil)
    z = net("MaxPool", net.conv_relu(y, 24, 8), **ceil)
    return [net.classify(net.conv_relu(z, 8, 8), 8)]


def ceiled_pools(net: Net) -> list[str]:
    """AveragePool with ceil_mode, pads, and both counts."""
    x = net.conv_relu(net.input(3, 12, 12), 3, 6)
    for include in (0, 1):
        ceil = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
        x = net("AveragePool", x, count_include_pad=include, **ceil)
        x = net.conv_relu(x, 6, 6)
    return [net.classify(x, 6)]


def relu6(net: Net, x: str) -> str:
    """Add a Clip to [0, 6]."""
    return net("Clip", x, net.constant(0.0), net.constant(6.0))


def mobilenet_v2(net: Net) -> list[str]:
    """Inverted residuals with linear bottlenecks and ReLU6."""
    x = relu6(net, net.conv(net.input(3, 16, 16), 3, 8, strides=[2, 2]))
    for stride in (1, 2, 1):
        y = relu6(net, net.batch_norm(net.conv(x, 8, 24, 1, bias=False), 24))
        y = relu6(net, net.conv(y, 24, 24, group=24, strides=[stride, stride]))
        y = net.conv(y, 24, 8, 1)
        x = net("Add", x, y) if stride == 1 else y
    return [net.classify(relu6(net, net.conv(x, 8, 16, 1)), 16)]


def squeeze_excite(net: Net, x: str, channels: int, gate: str) -> str:
    """Add GlobalAveragePool - Conv - Relu - Conv - gate - Mul."""
    y = net.conv_relu(net("GlobalAveragePool", x), channels, 4, 1)
    return net("Mul", x, net(gate, net.conv(y, 4, channels, 1)))


def mobilenet_v3(net: Net) -> list[str]:
    """HardSwish, squeeze-excite with HardSigmoid, depthwise 5x5."""
    x = net("HardSwish", net.conv(net.input(3, 16, 16), 3, 8, strides=[2, 2]))
    y = net("HardSwish", net.conv(x, 8, 16, 1))
    y = net("HardSwish", net.conv(y, 16, 16, 5, group=16))
    y = net.conv(squeeze_excite(net, y, 16, "HardSigmoid"), 16, 8, 1)
    x = net("HardSwish", net.conv(net("Add", x, y), 8, 16, 1))
    y = net("HardSwish", net.conv(net("GlobalAveragePool", x), 16, 24, 1))
    return [net("Flatten", net.conv(y, 24, 5, 1))]


def efficientnet(net: Net) -> list[str]:
    """Swish as x * Sigmoid(x), squeeze-excite with Sigmoid."""
    x = net.conv(net.input(3, 12, 12), 3, 8)
    x = net("Mul", x, net("Sigmoid", x))
    y = net.conv(squeeze_excite(net, x, 8, "Sigmoid"), 8, 8, 1)
    return [net.classify(net("Add", y, x), 8)]


def unet(net: Net) -> list[str]:
    """Encoder, ConvTranspose, Resize of both kinds, skips by Concat, a Sigmoid at the end."""
    a = net.conv_relu(net.input(3, 16, 16), 3, 6)
    b = net.conv_relu(net("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), 6, 8)
    c = net.conv_relu(net("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2]), 8, 8)
    up = net("ConvTranspose", c, net.weight(8, 8, 2, 2, size=0.3), strides=[2, 2])
    scales = net.constant([1.0, 1.0, 2.0, 2.0])
    nearest = net("Resize", c, "", scales, mode="nearest")
    d = net.conv_relu(net("Concat", up, b, nearest, axis=1), 24, 8)
    up = net("Resize", d, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    e = net.conv_relu(net("Concat", up, a, axis=1), 14, 6)
    return [net("Sigmoid", net.conv(e, 6, 1, 1))]


def shufflenet(net: Net) -> list[str]:
    """Channel shuffle by Reshape - Transpose - Reshape, Split, grouped Convs."""
    x = net.conv_relu(net.input(3, 12, 12), 3, 8)
    for _ in range(2):
        left, right = net.split("Split", 2, x, axis=1, num_outputs=2)
        right = net.conv_relu(right, 4, 4, 1)
        right = net.conv_relu(net.conv(right, 4, 4, group=4), 4, 4, 1)
        y = net("Concat", left, right, axis=1)
        y = net("Reshape", y, net.constant([-1, 2, 4, 12, 12]))
        y = net("Transpose", y, perm=[0, 2, 1, 3, 4])
        x = net("Reshape", y, net.constant([-1, 8, 12, 12]))
    x = net.conv_relu(x, 8, 8, 1, group=2)
    return [net.classify(x, 8)]


def super_resolution(net: Net) -> list[str]:
    """PRelu, LeakyRelu, DepthToSpace, a global skip by Resize."""
    image = net.input(1, 12, 12)
    x = net("PRelu", net.conv(image, 1, 8), net.constant([[[0.25]], *[[[0.1]]] * 6, [[-0.2]]]))
    x = net("LeakyRelu", net.conv(x, 8, 8), alpha=0.1)
    x = net("DepthToSpace", net.conv(x, 8, 4), blocksize=2, mode="CRD")
    skip = net("Resize", image, "", net.constant([1.0, 1.0, 2.0, 2.0]), mode="linear")
    return [net("Add", x, skip)]


def segmentation(net: Net) -> list[str]:
    """Atrous Convs, Softmax over the channels."""
    x = net.conv_relu(net.input(3, 12, 12), 3, 8)
    far = [net.conv_relu(x, 8, 4, dilations=[d, d], pads=[d] * 4) for d in (1, 2, 3)]
    x = net.conv(net("Concat", *far, axis=1), 12, 4, 1)
    return [net("Softmax", x, axis=1)]


def detector(net: Net) -> list[str]:
    """Two scales; scores by Softmax, boxes by Exp; Transpose, Reshape, Concat, Slice tails."""
    x = net.conv_relu(net.input(3, 16, 16), 3, 8, strides=[2, 2])
    y = net.conv_relu(x, 8, 8, strides=[2, 2])
    scores: list[str] = []
    boxes: list[str] = []
    for level in (x, y):
        for head, width, found in ((3, 3, scores), (4, 4, boxes)):
            z = net("Transpose", net.conv(level, 8, 2 * head), perm=[0, 2, 3, 1])
            found.append(net("Reshape", z, net.constant([0, -1, width])))
    score = net("Softmax", net("Concat", *scores, axis=1), axis=2)
    box = net("Concat", *boxes, axis=1)
    prior = net.constant(net.generator.uniform(0, 1, (160, 2)))
    axis = net.constant([2])
    center = net("Slice", box, net.constant([0]), net.constant([2]), axis)
    size = net("Slice", box, net.constant([2]), net.constant([4]), axis)
    center = net("Add", net("Mul", center, net.constant(0.1)), prior)
    size = net("Mul", net("Exp", net("Mul", size, net.constant(0.2))), prior)
    corner = net("Sub", center, net("Div", size, net.constant(2.0)))
    return [score, net("Concat", corner, net("Add", corner, size), axis=2)]
