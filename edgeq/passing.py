"""Passes and pipelines: deterministic rewrites of a model, in the order that a text names.

A pass is a frozen dataclass in a file of its own under `passes/`; its fields are its options:

    "cleanup, equalize{iterations=2}, choose-qparams"
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq import by_name
from edgeq.bit_choice import BitChoice
from edgeq.calibrate import Calibration, Progress, Samples, silent
from edgeq.checkpoint import Checkpoint
from edgeq.errors import EdgeqError, PassError, RecipeError, suggest
from edgeq.float_weight import FloatWeight
from edgeq.graph import remove_dead
from edgeq.longest import MAX_DIM
from edgeq.numerics.affine import QParams
from edgeq.places import places_of_node
from edgeq.recipe import QuantSpec, Recipe
from edgeq.softmax_bias import SoftmaxRow
from edgeq.steps import Step as Step
from edgeq.steps import format_steps as format_steps
from edgeq.steps import parse_steps as parse_steps
from edgeq.targeting import Capabilities

PACKAGE = "edgeq.passes"


@dataclass
class Context:
    """What passes may read, and the decisions that they hand to each other.

    Attributes:
        recipe: What the user asked for.
        capabilities: What the target can do.
        samples: The calibration samples; each iteration streams them anew.
        calibration: What they showed, by value name; None before calibration.
        reference: The prepared float model that was calibrated; None before calibration.
        qparams: The decided parameters of activations, by value name.
        copies: The parameters of the uint8 copies of values that have more bits, by value name.
        channel_scales: The values that a Mul made in other units by channel, for linear ops.
        weight_shifts: By the name of a float weight, what its codes are multiples of: 2**shift.
        input_types: Graph inputs that the user wants to feed as codes: name to qtype name.
        output_types: Graph outputs that the user wants as codes: name to qtype name.
        input_ranges: The least and the greatest value of integer inputs, by name, where given.
        max_dim: The most that a dimension which the model leaves open can be at run time.
        seed: The only source of randomness.
        notes: What a pass wants the report to say, as (pass or subject, text).
        softmax_rows: How the softmax of each attention was corrected.
        bit_choices: The formats that were chosen layer by layer.
        executor: What computes the tasks of `run_tasks`; None: this process.
        checkpoint: Where finished tasks are kept; None: nowhere.
        progress: Told how far a long pass is.
        device: What torch computes on: `cpu` or `cuda`.
        float_weights: What the codes of weights were rounded from, by initializer name.
    """

    recipe: Recipe
    capabilities: Capabilities
    samples: Samples
    calibration: Calibration | None = None
    reference: ir.Model | None = None
    qparams: dict[str, QParams] = field(default_factory=dict)
    copies: dict[str, QParams] = field(default_factory=dict)
    channel_scales: set[str] = field(default_factory=set)
    weight_shifts: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    input_types: Mapping[str, str] = field(default_factory=dict)
    output_types: Mapping[str, str] = field(default_factory=dict)
    input_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_dim: int = MAX_DIM
    seed: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)
    softmax_rows: list[SoftmaxRow] = field(default_factory=list)
    bit_choices: list[BitChoice] = field(default_factory=list)
    executor: Executor | None = None
    checkpoint: Checkpoint | None = None
    progress: Progress = silent
    device: str = "cpu"
    float_weights: dict[str, FloatWeight] = field(default_factory=dict)

    def keep_float(self, node: ir.Node) -> bool:
        """Whether the recipe leaves `node` in float32."""
        return self.recipe.keep_float(node.op_type, node_names(node), places_of_node(node))

    def weight_spec(self, node: ir.Node) -> QuantSpec:
        """Return how the weight of `node` is to be quantized."""
        names, places = node_names(node), places_of_node(node)
        return self.recipe.spec("weight", node.op_type, names, places)


def node_names(node: ir.Node) -> list[str]:
    """Return the names that a rule's pattern may match: the node's and its outputs'."""
    return [name for name in (node.name, *(out.name for out in node.outputs)) if name]


@dataclass(frozen=True)
class Pass(ABC):
    """A deterministic rewrite of a model, in place. Dataclass fields are its options."""

    @classmethod
    def name(cls) -> str:
        """The file's name: `passes/insert_qdq.py` is `insert-qdq`."""
        return by_name.own_name(cls)

    def check(self, recipe: Recipe, target: str, capabilities: Capabilities) -> None:
        """Refuse what the pass cannot do for a recipe or a target, before anything else is done.

        Raises:
            EdgeqError: The user must change something.
        """
        del recipe, target, capabilities

    @abstractmethod
    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite `model`; return how many rewrites were made (0: model untouched)."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: The step as written, with its options.
        rewrites: How many rewrites it made.
        seconds: How long it took.
    """

    name: str
    rewrites: int
    seconds: float


def pass_names() -> list[str]:
    """Return the names of all passes."""
    return by_name.names(PACKAGE)


def find_pass(name: str) -> type[Pass]:
    """Return the pass `name`.

    Raises:
        UnknownNameError: There is no such pass.
    """
    found: type[Pass] = by_name.find(PACKAGE, name, Pass, "pass")
    return found


def make_pass(step: Step) -> Pass:
    """Return the pass that a step names, its options read by their fields' types.

    Raises:
        UnknownNameError: There is no such pass.
        RecipeError: There is no such option, or its value does not fit.
    """
    cls = find_pass(step.name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for key, text in step.options.items():
        if key not in fields:
            raise RecipeError(
                f"pass {step.name}: unknown option {key!r}{suggest(key, list(fields))};"
                f" known: {', '.join(fields) or 'none'}"
            )
        values[key] = _read_option(step.name, key, text, type(fields[key].default))
    return cls(**values)


def _read_option(name: str, key: str, text: str, kind: type) -> object:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is tuple:
            return tuple(item.strip() for item in text.split("|") if item.strip())
        return kind(text)
    except (KeyError, ValueError):
        raise RecipeError(
            f"pass {name}: option {key} = {text!r} is not a valid {kind.__name__}"
        ) from None


def run_pipeline(
    text: str,
    model: ir.Model,
    context: Context,
    on_step: Callable[[str], None] = lambda name: None,
) -> list[PassRecord]:
    """Run the passes that `text` names on `model`, in place.

    Raises:
        EdgeqError: A pass found something that the user must change.
        PassError: A pass failed; the message names it.
    """
    records = []
    for step in parse_steps(text):
        instance = make_pass(step)
        on_step(step.name)
        start = time.perf_counter()
        try:
            rewrites = instance.run(model, context)
        except EdgeqError:
            raise
        except Exception as error:
            raise PassError(f"pass {step.name} failed: {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - start
        records.append(PassRecord(format_steps([step]), rewrites, seconds))
    # What passes replaced may lie about unused; float weights would be deployed with their codes.
    remove_dead(model.graph)
    return records
