"""Choose the width of each layer's weights and inputs: least noise within a budget.

before:  every layer in the format of the recipe
after:   rules of the recipe that name the format of each layer; the graph is not edited

The noise of a layer in a format is measured: the float model runs on a few calibration samples
with this layer alone rounded, and what that does to the outputs is its noise, in parts of their
power (or as Kullback-Leibler divergence of the classes: `loss=kl`). Roundings of different layers
hardly know of each other, so their noise about adds up, and an integer program chooses one format
for each layer: the least noise, all told, within every budget that is given,

    budget_bytes     bytes of the weights, as a share of what they take in 8 bits
    budget_bitops    multiplications times the bits of both factors, as a share of those in 8 bits
    budget_ms        milliseconds of all layers, by a file of `edgeq sensitivity --latencies`

    plan-bits{budget_bytes=0.6,weights=int4|int8}

(after the allocation of Moon et al. 2024, "Instance-Aware Group Quantization for Vision
Transformers", section 3.4). Then the layers are measured around this plan, the others rounded as it
says, and planned anew; the best of `rounds` plans counts.

The pass runs in front of choose-qparams, and adds rules. A format that a rule of the recipe names
stays; what is kept in float32 has none.
"""

from dataclasses import dataclass
from glob import escape
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.bit_choice import (
    ACTIVATION_FORMATS,
    BYTE,
    WEIGHT_FORMATS,
    BitChoice,
    check_formats,
)
from edgeq.bit_formats import Float64, Formats, formats
from edgeq.bit_latency import read_latencies
from edgeq.bit_layers import find_bit_layers
from edgeq.bit_measure import NoiseMeter
from edgeq.bit_noise import LOSSES
from edgeq.bit_program import BitProgram, Budget
from edgeq.bit_search import search
from edgeq.errors import RecipeError
from edgeq.passing import Context, Pass
from edgeq.recipe import Rule


@dataclass(frozen=True)
class PlanBits(Pass):
    """Add a rule for each layer that is to have another format than the recipe's.

    Attributes:
        budget_bytes: Share of the bytes of 8-bit weights; 0: no such budget.
        budget_bitops: Share of the bit operations of 8-bit layers; 0: no such budget.
        budget_ms: Milliseconds of all layers together; 0: no such budget.
        latencies: The file that says what each layer takes in each format.
        weights: Formats of weights to choose from; of equally good ones the first counts.
        activations: Formats of what layers read, to choose from.
        loss: `mse`, or `kl` where outputs are scores of classes.
        samples: At most so many calibration samples take part.
        rounds: How many plans to measure around, at most.
    """

    budget_bytes: float = 0.0
    budget_bitops: float = 0.0
    budget_ms: float = 0.0
    latencies: str = ""
    weights: tuple[str, ...] = ("int4", "int8")
    activations: tuple[str, ...] = ("uint8",)
    loss: str = "mse"
    samples: int = 32
    rounds: int = 3

    def __post_init__(self) -> None:
        """Refuse options that mean nothing.

        Raises:
            RecipeError: One of them does.
        """
        check_formats("plan-bits: weights", self.weights, WEIGHT_FORMATS)
        check_formats("plan-bits: activations", self.activations, ACTIVATION_FORMATS)
        if self.loss not in LOSSES:
            raise RecipeError(f"plan-bits: loss is {self.loss!r}; one of {', '.join(LOSSES)}")
        if self.samples < 1 or self.rounds < 0:
            key, least = ("samples", 1) if self.samples < 1 else ("rounds", 0)
            raise RecipeError(f"plan-bits: {key} is {getattr(self, key)}; give at least {least}")
        budgets = self.budget_bytes, self.budget_bitops, self.budget_ms
        if min(budgets) < 0:
            raise RecipeError(f"plan-bits: a budget is above 0, not {min(budgets):g}")
        if bool(self.budget_ms) != bool(self.latencies):
            raise RecipeError(
                "plan-bits: budget_ms and latencies go together: the file says what each layer"
                " takes in each format; `edgeq sensitivity --latencies FILE` measures it for"
                " ONNX Runtime on this machine, other devices are measured elsewhere"
            )
        if not any(budgets):
            raise RecipeError(
                "plan-bits: give a budget, as a share of what 8 bits take:"
                " plan-bits{budget_bytes=0.6}, plan-bits{budget_bitops=0.5}, or both"
            )

    def run(self, model: ir.Model, context: Context) -> int:
        """Add rules to `context.recipe`; return how many.

        Raises:
            RecipeError: A budget is too small, or scipy is not installed.
        """
        assert context.reference is not None, "plan-bits runs after calibration"
        layers = find_bit_layers(context.reference, context)
        if not layers:
            context.notes.append((self.name(), "no layer has weights whose width could be chosen"))
            return 0
        found = formats(layers, self.weights, self.activations, context)
        meter = NoiseMeter(context, self.samples)
        plan = search(
            found,
            lambda noise: self._program(found, noise),
            meter,
            loss=self.loss,
            rounds=self.rounds,
        )
        chosen = plan.chosen
        rules = [rule for k, o in enumerate(chosen) for rule in _rules(found, k, o)]
        rules = list(dict.fromkeys(rules))
        context.notes.append((self.name(), f"noise of the plan ({self.loss}): {plan.together:.3g}"))
        context.bit_choices += _choices(found, plan.alone, chosen)
        context.recipe = context.recipe.with_rules(rules)
        return len(rules)

    def _program(self, found: Formats, noise: Float64) -> BitProgram:
        weights = sum(layer.weight.size for layer in found.layers)
        operations = BYTE * BYTE * sum(layer.macs for layer in found.layers)
        every = (
            (Budget("budget_bytes", self.budget_bytes, weights, "bytes"), found.weight_bytes()),
            (Budget("budget_ms", self.budget_ms, 1.0, "ms"), self._milliseconds(found)),
            (
                Budget("budget_bitops", self.budget_bitops, operations, "bit operations"),
                found.bit_operations(),
            ),
        )
        budgets, costs = zip(*(pair for pair in every if pair[0].share), strict=True)
        return BitProgram(noise, np.stack(costs), budgets, found.sources, found.kinds)

    def _milliseconds(self, found: Formats) -> Float64:
        if not self.latencies:
            return np.zeros((len(found.layers), len(found.kinds)))
        return read_latencies(Path(self.latencies), found)


def _rules(found: Formats, place: int, option: int) -> list[Rule]:
    """Return the rules that give a layer its formats, where the recipe does not do so already."""
    layer, chosen, own = found.layers[place], found.options[place][option], found.own[place]
    rules = []
    if chosen.weight != own.weight:
        weight = (("qtype", chosen.weight),)
        rules.append(Rule(op_type=layer.node.op_type, name=escape(layer.name), weight=weight))
    maker = layer.maker
    if chosen.activation != own.activation and maker is not None:
        read = (("qtype", chosen.activation),)
        rules.append(Rule(op_type=maker.op_type, name=escape(str(maker.name)), activation=read))
    return rules


def _choices(found: Formats, noise: Float64, chosen: tuple[int, ...]) -> list[BitChoice]:
    sizes, operations = found.weight_bytes(), found.bit_operations()
    return [
        BitChoice(
            layer.name,
            layer.node.op_type,
            mine[o].weight,
            mine[o].activation,
            float(noise[k, o]),
            layer.weight.size,
            int(sizes[k, o]),
            int(operations[k, o]),
        )
        for k, (layer, mine, o) in enumerate(zip(found.layers, found.options, chosen, strict=True))
    ]
