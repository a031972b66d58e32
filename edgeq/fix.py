"""Write a QDQ model of any tool by the rules that it breaks.

Each rule names the passes that write a model by it (`edgeq.rules.Rule.rewrite`). Those of the
broken rules are run, in one order; what they leave may break a rule that was hidden before, so that
is repeated a few times. Weights, ranges and scales stay the tool's: what a rule wants that needs
data, as a range for a value that the tool left in float, stays a finding.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.data import FeedSamples
from edgeq.lint import NOTHING_SET, Finding, lint
from edgeq.longest import MAX_DIM
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, PassRecord, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.rules import RULES, UNPROVEN
from edgeq.steps import parse_steps
from edgeq.targeting import EXACT, Capabilities

# What moves and stores codes comes first, then what makes linear ops integer, then the rest.
ORDER = (
    "store-codes", "zero-points", "unsigned-codes", "move-channel-scales", "dequantize-late",
    "fold-clip", "tabulate-requantization", "integer-biases", "unit-products", "unit-scales",
    "tabulate", "exact-normalization", "exact-softmax", "prove-fused",
)  # fmt: skip
ROUNDS = 3
_NONE = FeedSamples(lambda: iter(()), (), "nothing")  # these passes read no data


@dataclass(frozen=True)
class Fixed:
    """What was done.

    Attributes:
        records: The passes that rewrote something, in order.
        left: What the rules still find.
    """

    records: tuple[PassRecord, ...]
    left: tuple[Finding, ...]


def fix(model: ir.Model, capabilities: Capabilities = NOTHING_SET, max_dim: int = MAX_DIM) -> Fixed:
    """Rewrite `model` in place by the rules that it breaks.

    Args:
        model: A QDQ model, shapes inferred.
        capabilities: Of the target; rules that its session options satisfy are left out.
        max_dim: No axis that the model leaves open is longer at run time.
    """
    recipe = load_recipe("int8", {})
    context = Context(recipe=recipe, capabilities=EXACT, samples=_NONE, max_dim=max_dim)
    records: list[PassRecord] = []
    rewrites = {rule.id: rule.rewrite for rule in (*RULES, UNPROVEN)}
    for _ in range(ROUNDS):
        broken = {finding.rule for finding in lint(model, capabilities, max_dim=max_dim)}
        wanted = {step.name for rule in broken for step in parse_steps(rewrites[rule])}
        names = [name for name in ORDER if name in wanted or (wanted and name == "store-codes")]
        made = run_pipeline(", ".join(names), model, context) if names else []
        records += [record for record in made if record.rewrites]
        if not any(record.rewrites for record in made):
            break
        infer_shapes(model)
    return Fixed(tuple(records), lint(model, capabilities, max_dim=max_dim))
