"""Where a node of a QDQ model breaks a rule."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """What a rule's check found at one node.

    Attributes:
        value: Name of the value concerned.
        detail: What was found.
        cpus: Where it happens, as `edgeq.cpus` names them; empty: where the rule says.
    """

    value: str
    detail: str
    cpus: tuple[str, ...] = ()


Found = Iterator[Breach]
