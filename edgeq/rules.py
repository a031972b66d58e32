"""Rules that keep ONNX Runtime on edgeq's definition of the arithmetic, as data.

Each rule has one check, which looks at one node of a QDQ model and says what breaks it. The
evidence was measured with ONNX Runtime 1.31 on x86 with and without VNNI, and on emulated x86 and
Arm cores; `tests/test_rules.py` breaks each rule and shows the bits that differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgeq import float_checks, fusion_checks, linear_checks
from edgeq.breach import Found
from edgeq.cpus import ALL, OVERFLOWING, SATURATING, X86


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: What findings and options call it.
        summary: What must hold.
        reason: What happens otherwise.
        remedy: What to write instead.
        cpus: Where it happens, as `edgeq.cpus` names them, unless the check says otherwise.
        check: Yields what it finds at one node.
        rewrite: The passes that write a model by the rule; empty if none can.
        option: The session option whose value "1" satisfies the rule; empty if there is none.
    """

    id: str
    summary: str
    reason: str
    remedy: str
    cpus: tuple[str, ...]
    check: Callable[[ir.Node], Found]
    rewrite: str = ""
    option: str = ""


RULES = (
    Rule(
        "uint8-activations",
        "Activations are uint8.",
        "int8 activations stay float on x86 where they have several readers or come from outside;"
        " Arm multiplies integers.",
        "Quantize activations to uint8.",
        X86,
        linear_checks.int8_activation,
        "unsigned-codes",
    ),
    Rule(
        "weight-range",
        "int8 weights lie within [-127, 127].",
        "Two products of -128 * -128 overflow the 16-bit sums of Arm CPUs without dot product, and"
        " those of depthwise Convs on every Arm.",
        "Choose symmetric weight scales that leave -128 unused, or store weights as uint8.",
        OVERFLOWING,
        linear_checks.weight_range,
        "unsigned-codes",
    ),
    Rule(
        "x64quantprecision",
        "Sessions of models with int8 weights beyond 64 set session.x64quantprecision=1.",
        "x86 CPUs without VNNI saturate the sum of two u8 * s8 products to 16 bits: 6 to 84 % of"
        " the results are wrong.",
        "Set the session option, limit weights to [-64, 64], or store them as uint8.",
        SATURATING,
        linear_checks.saturating_pairs,
        "unsigned-codes",
        "session.x64quantprecision",
    ),
    Rule(
        "dynamic-right-side",
        "A right-hand side computed at run time is uint8.",
        "u8 * s8 saturates on x86 without VNNI, whatever the session options.",
        "Quantize it to uint8.",
        SATURATING,
        linear_checks.int8_right_side,
        "unsigned-codes",
    ),
    Rule(
        "dynamic-scale",
        "Scales are constants: models are quantized statically.",
        "DynamicQuantizeMatMul saturates u8 * s8 on x86 without VNNI, and its multiply-add is fused"
        " on Arm; there is no formula of it to prove or predict.",
        "Quantize with calibration data: quantize_static, or edgeq compile from the float model.",
        ALL,
        linear_checks.dynamic_scale,
    ),
    Rule(
        "matmul-bias",
        "A MatMul with constant weights and a bias is a Gemm between Reshapes.",
        "MatMul and Add run as MatMulIntegerToFloat, whose multiply-add is fused on some CPUs, or"
        " as a float Gemm, whose bits depend on the batch size.",
        "Reshape - Gemm - Reshape with an int32 bias, or products in units and a Mul behind.",
        ALL,
        linear_checks.matmul_bias,
        "unit-products",
    ),
    Rule(
        "zero-point-input",
        "Every DequantizeLinear has its zero_point input.",
        "Without it a Gemm stays float.",
        "Add the input, also where it is zero.",
        ALL,
        linear_checks.zero_point_missing,
        "zero-points",
    ),
    Rule(
        "per-axis-activation",
        "Activations are dequantized per tensor.",
        "The op stays float, or fuses into a kernel that refuses the parameters at run time.",
        "Use one scale per tensor; weights on both sides can hold those of the channels.",
        ALL,
        linear_checks.per_axis_activation,
        "move-channel-scales",
    ),
    Rule(
        "per-axis-result",
        "What a fused kernel can make is quantized per tensor.",
        "The op stays float, or fuses into a kernel that refuses the parameters at run time, or"
        " takes the first of the scales for all channels: Softmax does.",
        "Use one scale per tensor.",
        ALL,
        linear_checks.per_axis_result,
        "move-channel-scales",
    ),
    Rule(
        "float-product",
        "Linear ops on quantized weights run on integers.",
        "In float, the order in which products are added is each CPU's, and so are the last bits.",
        "Quantize the input, the weights, the bias (int32) and the result, with nothing between.",
        ALL,
        linear_checks.float_product,
        "dequantize-late, fold-clip, integer-biases, unit-products, prove-fused",
    ),
    Rule(
        "bias-scale",
        "A bias is int32 with scale float32(sx * sw) and zero point 0.",
        "With another scale the op does not fuse: float arithmetic runs.",
        "Quantize the bias with exactly this scale.",
        ALL,
        linear_checks.bias_scale,
        "integer-biases",
    ),
    Rule(
        "bias-range",
        "Bias codes stay within 2**30.",
        "The int32 accumulator wraps around.",
        "Give channels with tiny weights a scale floor.",
        ALL,
        linear_checks.bias_range,
    ),
    Rule(
        "denormal",
        "No scale and no multiplier is denormal.",
        "Armv7 NEON flushes denormal numbers to zero.",
        "Give dead channels a scale floor.",
        ("armv7",),
        linear_checks.denormal,
    ),
    Rule(
        "clip-before-quantize",
        "No Clip or Relu that cuts the representable range stands between a linear op and its"
        " QuantizeLinear, and none behind a Gemm whose result is not quantized.",
        "It keeps the op from fusing: float arithmetic runs instead.",
        "Choose the range so that it is redundant, or clip the codes; limit reals by Max and Min.",
        ALL,
        linear_checks.clip_behind,
        "fold-clip, prove-fused",
    ),
    Rule(
        "fused-without-proof",
        "A fused Add, Mul, AveragePool or GlobalAveragePool equals the definition for every input.",
        "Those kernels have formulas of their own: they add the zero point before rounding, round"
        " halves away from zero on Arm, or multiply by a rounded reciprocal.",
        "Relate the scales by odd multiples, use Sum instead of Add, ReduceMean in units instead of"
        " GlobalAveragePool, or move the output scale by an ulp.",
        ALL,
        fusion_checks.unproven,
        "unit-scales, prove-fused",
    ),
    Rule(
        "fused-softmax",
        "Softmax is neither fused nor in float.",
        "QLinearSoftmax multiplies by floor(1 / sy): wrong unless that is an integer. In float, exp"
        " and the order of the sum are each CPU's.",
        "Write it with a table of integers, ReduceSum and Div.",
        ALL,
        fusion_checks.softmax,
        "exact-softmax",
    ),
    Rule(
        "requantization",
        "Codes are not quantized again to other codes that are dequantized at once.",
        "ONNX Runtime merges QuantizeLinear - DequantizeLinear - QuantizeLinear - DequantizeLinear"
        " into one pair with other parameters, unless a value in between has other readers: adding"
        " a tap hides it.",
        "Quantize once, or set session.disable_double_qdq_remover=1.",
        ALL,
        fusion_checks.requantization,
        "tabulate-requantization",
        option="session.disable_double_qdq_remover",
    ),
    Rule(
        "off-grid-sum",
        "Values are summed in units: integers times a power of two.",
        "A float sum rounds at every step, in an order that each CPU chooses.",
        "Dequantize with scale 1, and apply the scale in the QuantizeLinear behind.",
        ALL,
        float_checks.off_grid_sum,
        "unit-scales",
    ),
    Rule(
        "float-normalization",
        "Normalisations of codes are written with exact sums.",
        "LayerNormalization and its relatives add reals, in an order that each CPU chooses.",
        "Sum the codes as integers, and give QuantizeLinear a scale for each row.",
        ALL,
        float_checks.normalization_in_float,
        "exact-normalization",
    ),
    Rule(
        "float-function",
        "Functions that IEEE does not define keep 1/64 LSB from rounding ties, or are tables.",
        "The last bits of exp, erf and tanh differ between CPUs.",
        "A table of 256 entries, read by Cast and GatherElements.",
        ALL,
        float_checks.float_function,
        "tabulate",
    ),
    Rule(
        "gather-table",
        "Tables are read by GatherElements.",
        "Gather copies slices: nine times slower for single elements.",
        "Reshape - Cast - GatherElements - Reshape.",
        ALL,
        float_checks.gather_table,
    ),
)

# Of whole models: what the certificate has no proof for, where no other rule names the node.
UNPROVEN = Rule(
    "unproven-node",
    "Every node has a proof that all CPUs compute the same bits.",
    "What IEEE does not define, or adds up in an order of its own, differs in its last bits.",
    "Quantize what it reads and makes, or write it in operations that have a proof.",
    ALL,
    lambda node: iter(()),
)
