"""Widths of a layer: what there is to choose from, and what was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.errors import RecipeError, suggest
from edgeq.numerics.qtype import FORMATS

SMALLEST_PACKED = 256  # weights; the nodes that unpack fewer take about as much as that saves
BYTE = 8  # bits; also the widths that budgets are shares of

WEIGHT_FORMATS = tuple(name for name, q in FORMATS.items() if q.signed and q.bits <= BYTE)
ACTIVATION_FORMATS = tuple(name for name, q in FORMATS.items() if not q.signed and q.bits <= BYTE)


@dataclass(frozen=True)
class BitOption:
    """Formats of a layer.

    Attributes:
        weight: Of its weights, by name.
        activation: Of the codes that it reads, by name.
    """

    weight: str
    activation: str

    def weight_bytes(self, count: int) -> int:
        """Return how many bytes so many weights take in a bundle."""
        bits = BYTE if count < SMALLEST_PACKED else stored_bits(self.weight)
        return -(-count * bits // BYTE)

    @property
    def operations(self) -> int:
        """Operations on single bits that a multiply and add stands for."""
        return _bits(self.weight) * _bits(self.activation) if self.activation else 0


def check_formats(where: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse formats that there is no choice of.

    Raises:
        RecipeError: One is not `known`, or there is none; the message says `where`.
    """
    for name in given:
        if name not in known:
            raise RecipeError(
                f"{where} names {name!r}{suggest(name, list(known))}; choose from"
                f" {', '.join(known)}, separated by |"
            )
    if not given:
        raise RecipeError(f"{where} is empty; choose from {', '.join(known)}")


def stored_bits(qtype: str) -> int:
    """Return how many bits a code takes in a bundle, where ONNX has types of 4 and 8 bits.

    >>> stored_bits("int3"), stored_bits("float4e2m1"), stored_bits("int6")
    (4, 4, 8)
    """
    return 4 if _bits(qtype) <= 4 else BYTE


def _bits(qtype: str) -> int:
    return 4 if qtype == "float4" else FORMATS[qtype].bits  # whichever of them fits best


@dataclass(frozen=True)
class BitChoice:
    """What a layer was given, and what it costs.

    Attributes:
        layer: Name of the node.
        op_type: Conv, Gemm, MatMul, or Gather for an embedding.
        weight: Format of its weights.
        activation: Format of the codes that it reads; empty for an embedding.
        noise: What its rounding alone does to the outputs, in parts of their power.
        weight_count: How many weights it has.
        weight_bytes: Bytes of its weights.
        bit_operations: Multiplications and additions of a sample, times the bits of both factors.
    """

    layer: str
    op_type: str
    weight: str
    activation: str
    noise: float
    weight_count: int
    weight_bytes: int
    bit_operations: int
