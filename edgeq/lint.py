"""Hold the rules for ONNX Runtime against a QDQ model, whoever made it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeq.breach import Breach
from edgeq.certify import Certificate, certify
from edgeq.cpus import in_words
from edgeq.graph import clone, constant
from edgeq.longest import MAX_DIM
from edgeq.passes.store_codes import store_codes
from edgeq.rules import RULES, UNPROVEN, Rule
from edgeq.targeting import EXACT, Capabilities

NOTHING_SET = Capabilities()


@dataclass(frozen=True)
class Finding:
    """Where a model breaks a rule, and what to do.

    Attributes:
        rule: The rule's id.
        node: Name of the node.
        value: Name of the value concerned.
        detail: What was found.
        reason: What happens.
        remedy: What to write instead.
        cpus: Where it happens, as `edgeq.cpus` names them, separated by commas.
        rewrite: The passes of `edgeq lint --fix` that write it by the rule; empty if none can.
    """

    rule: str
    node: str
    value: str
    detail: str
    reason: str
    remedy: str
    cpus: str
    rewrite: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the fields, all texts."""
        return dict(vars(self))

    def __str__(self) -> str:
        place = f"node {self.node!r}, value {self.value!r}"
        return f"{self.rule}: {place}: {self.detail}. {self.reason} ({self.where}) {self.remedy}"

    @property
    def where(self) -> str:
        """The CPUs, in words."""
        return in_words(self.cpus.split(", "))


def lint(
    model: ir.Model,
    capabilities: Capabilities = NOTHING_SET,
    rules: tuple[Rule, ...] = RULES,
    max_dim: int = MAX_DIM,
) -> tuple[Finding, ...]:
    """Return every place where `model` breaks a rule, in graph order.

    Weights that are quantized in the graph are read as their codes.

    Args:
        model: A QDQ model of any tool; shapes inferred, or the sizes of images are not known.
        capabilities: Of the target; rules that its session options satisfy are left out.
        rules: Which rules to hold against the model.
        max_dim: No axis that the model leaves open is longer at run time.
    """
    if any(_quantizes_constant(node) for node in model.graph):
        model = clone(model)
        store_codes(model)
    options = capabilities.session_options
    open_rules = [r for r in rules if not (r.option and options.get(r.option) == "1")]
    findings = [
        _finding(rule, node, breach)
        for node in model.graph
        for rule in open_rules
        for breach in rule.check(node)
    ]
    certificate = certify(model, replace(EXACT, session_options=options), max_dim)
    return (*findings, *_unproven(model, certificate, {finding.node for finding in findings}))


def _unproven(
    model: ir.Model, certificate: Certificate, named: Collection[str]
) -> Iterator[Finding]:
    """Yield a finding for each node without a proof that no other finding names."""
    for node, proof in zip(model.graph, certificate.proofs, strict=True):
        if proof.kind == "unproven" and _name(node) not in named:
            value = node.outputs[0].name or ""
            yield _finding(UNPROVEN, node, Breach(value, f"{node.op_type}: {proof.detail}"))


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _quantizes_constant(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and constant(node.inputs[0]) is not None


def _finding(rule: Rule, node: ir.Node, breach: Breach) -> Finding:
    return Finding(
        *(rule.id, _name(node), breach.value, breach.detail, rule.reason, rule.remedy),
        cpus=", ".join(breach.cpus or rule.cpus),
        rewrite=rule.rewrite,
    )


def to_text(findings: tuple[Finding, ...], *, left: bool = False) -> str:
    """Return the findings rule by rule, each rule explained once; empty if there are none.

    Args:
        findings: Of one model.
        left: Whether they are what `--fix` left.
    """
    lines = []
    for rule in (*RULES, UNPROVEN):
        places = [f for f in findings if f.rule == rule.id]
        if not places:
            continue
        fixed = " (--fix cannot here)" if left else " (--fix does)" if rule.rewrite else ""
        lines += [f"{rule.id}: {rule.summary}", f"  why: {rule.reason}"]
        lines += [f"  do:  {rule.remedy}{fixed}"]
        lines += [f"  - {f.node} ({f.value}): {f.detail}; on {f.where}" for f in places]
    return "\n".join(lines)
