"""What a model compiled ahead of time takes of a device's memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BufferRow:
    """One piece of the workspace, and when it is in use.

    Attributes:
        name: The value that lies there, or `scratch`.
        offset: In bytes.
        size: In bytes.
        first: The number of the kernel that writes it.
        last: The number of the last kernel that reads it.
    """

    name: str
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryUse:
    """Bytes, by section.

    Attributes:
        code: Of the kernels; None where no linker has seen them yet.
        constants: Read-only data in the kernels' object.
        weights: Weights, biases, multipliers and tables, as they are aligned.
        workspace: RAM, on top of inputs and outputs.
        peak: The most that is in use at once; no plan needs less.
        kernels: How many there are.
        buffers: How the workspace is used.
    """

    code: int | None
    constants: int
    weights: int
    workspace: int
    peak: int
    kernels: int
    buffers: tuple[BufferRow, ...]

    @property
    def flash(self) -> int:
        """Code and all constants."""
        return (self.code or 0) + self.constants + self.weights
