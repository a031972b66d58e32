"""Operators that have no plain equivalent, by the reason, and what the user can do instead."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

_UNOPTIMIZED = (
    "give edgeq the model as it was exported, before ONNX Runtime's optimizer"
    " (optimum, Olive, onnxruntime.transformers) rewrote it"
)
_CACHE = (
    "keeps keys and values in a buffer that it changes in place",
    "export the model without a cache (use_cache=False), or with caches that are concatenated",
    (
        "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DecoderAttention",
        "GroupQueryAttention", "PagedAttention", "SparsePagedAttention", "TensorScatter",
    ),
)  # fmt: skip
_SPARSE = (
    "chooses at run time which keys to attend to",
    "export the model with dense attention (attn_implementation='eager' or 'sdpa')",
    (
        "DynamicSparseAttention", "LongformerAttention", "PackedSparseAttentionIndexer",
        "SparseAttention", "SparseAttentionIndexer",
    ),
)  # fmt: skip
_QUANTIZED = (
    "is quantized already",
    "compile the float model that it was made from",
    (
        "DequantizeBFP", "DequantizeWithOrder", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
        "GatherBlockQuantized", "GemmFloat8", "MatMulBlockQuantizedFp4Weight",
        "MatMulBlockQuantizedFp8Weight", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16",
        "MatMulIntegerToFloat", "MatMulNBits", "MatMulNBitsMlp", "MatMulNBitsQkv", "MulInteger",
        "NhwcMaxPool", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE",
        "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization",
        "QOrderedLongformerAttention", "QOrderedMatMul", "QuantizeBFP", "QuantizeWithOrder",
        "ReduceSumInteger",
    ),
)  # fmt: skip
_EXPERTS = (
    "chooses at run time which experts compute",
    "export each expert as a model of its own, or a dense model",
    ("MoE",),
)
_LOOPS = (
    "holds a whole decoding loop",
    "give edgeq the decoder alone, and run the loop around it",
    ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"),
)
_STATES = (
    "carries a state from one token to the next",
    "export the model with the recurrence unrolled, or keep that part outside",
    (
        "AttnLSTM", "CausalConvWithState", "GatedDeltaNet", "LinearAttention",
        "LinearAttentionGate", "VarlenCausalConvWithState",
    ),
)  # fmt: skip
_PACKING = (
    "makes a tensor whose length depends on the data",
    "save the model without packing (onnxruntime's convert_to_packing_mode)",
    ("RemovePadding", "RestorePadding"),
)


def _rows() -> Iterator[tuple[str, tuple[str, str]]]:
    for reason, way_out, names in (
        _CACHE, _SPARSE, _QUANTIZED, _EXPERTS, _LOOPS, _STATES, _PACKING,
    ):  # fmt: skip
        yield from ((name, (reason, way_out)) for name in names)


REFUSED: Mapping[str, tuple[str, str]] = MappingProxyType(dict(_rows()))


def why_refused(op_type: str, domain: str) -> str:
    """Return why edgeq has no use for an operator, and what to do, as the end of a sentence."""
    if op_type in REFUSED:
        reason, way_out = REFUSED[op_type]
        return f"which {reason}; {way_out}"
    if domain in ("com.microsoft.nchwc", "com.ms.internal.nhwc"):
        return f"which is laid out for the CPU that it was saved on; {_UNOPTIMIZED}"
    if domain == "com.microsoft":
        return f"which ONNX Runtime alone knows; {_UNOPTIMIZED}"
    return "which is not an ONNX operator; export the model with standard operators only"
