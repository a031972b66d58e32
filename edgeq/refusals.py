"""What makes `compile` fail: a missing proof, a kernel that is not integer, a bit that differs."""

from collections.abc import Mapping

import onnx_ir as ir

from edgeq.certify import Certificate
from edgeq.errors import ModelError, VerificationError, suggest
from edgeq.evidence import write_evidence
from edgeq.recipe import Rule
from edgeq.request import CompileRequest
from edgeq.targeting import Artifact, Target
from edgeq.verify import Verdict


def check_allowed(request: CompileRequest, certificate: Certificate) -> None:
    """Refuse patterns that no node has; the names are those of the model that was certified."""
    for pattern in request.allow_unproven:
        rule = Rule(name=pattern)
        if not any(rule.matches(proof.op_type, [proof.node]) for proof in certificate.proofs):
            raise ModelError(
                f"--allow-unproven {pattern}: no node of the quantized model has such a name"
                f"{suggest(pattern, [proof.node for proof in certificate.proofs])}"
            )


def refuse_unproven(request: CompileRequest, certificate: Certificate, artifact: Artifact) -> None:
    """Fail if a node has no proof that the user did not allow to have none."""
    rule = [Rule(name=pattern) for pattern in request.allow_unproven]
    missing = [
        proof
        for proof in certificate.unproven
        if not any(r.matches(proof.op_type, [proof.node]) for r in rule)
    ]
    if not missing:
        return
    first = missing[0]
    reason = (
        f"{len(missing)} nodes without a proof; first: {first.op_type} {first.node!r}:"
        f" {first.detail}. Change the recipe, or accept it with --allow-unproven '{first.node}'"
        + (", all of them with '*'" if len(missing) > 1 else "")
    )
    fail(request, artifact, None, reason)


def refuse_unfused(
    request: CompileRequest,
    target: Target,
    model: ir.Model,
    kernels: Mapping[str, int],
    artifact: Artifact,
) -> None:
    """Fail if an op that should have an integer kernel has another one."""
    missing = target.missing_kernels(model, kernels)
    if missing:
        fail(request, artifact, None, f"ops that should be integer are not: {'; '.join(missing)}")


def fail(request: CompileRequest, artifact: Artifact, verdict: Verdict | None, reason: str) -> None:
    """Write the evidence, and raise.

    Raises:
        VerificationError: Always.
    """
    assert request.output is not None
    folder = write_evidence(request.output, artifact=artifact, verdict=verdict, reason=reason)
    raise VerificationError(f"{reason} (evidence: {folder})")
