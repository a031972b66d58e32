"""Choose scale and zero point of every activation that is to be quantized.

The model is not edited: decisions go to `context.qparams`, by value name, and `insert-qdq` follows
them. A value is quantized when

1. a node in front of some linear op reads it (nothing stays float there), or
2. a Conv or MatMul makes it (their integer kernels have no float result; a Relu or Clip behind it
   is looked through), or
3. a function that IEEE does not define reads it, or an op that adds many elements (tables, exact
   forms and sums in units start from codes), or
4. it is a graph output that the user wants as codes.

What comes behind the last linear op is the float tail: it keeps float32 where IEEE defines it.
Ops that only move elements share the parameters of their input, and so do all inputs of a Concat:
one scale for both sides costs less than rounding twice. Inputs that come as codes keep their own.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeq.code_plan import Group, plan_codes
from edgeq.group_ranges import group_range, group_spec
from edgeq.numerics.affine import QParams
from edgeq.numerics.scale import choose_qparams
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class ChooseQParams(Pass):
    """Decide the parameters of activations from what calibration saw."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Fill `context.qparams` and `context.copies`; return how many values were decided.

        Raises:
            ModelError: An output that the user wants as codes is a constant.
        """
        assert context.calibration is not None, "choose-qparams runs after calibration"
        before = len(context.qparams)
        groups = plan_codes(model, context)
        if not groups and not context.qparams:
            text = "no linear op, sum or function is to be quantized: the model stays float32"
            context.notes.append((self.name(), text))
        for group in groups:
            qparams = _decide(group, "residual" if group.residual else "activation", context)
            for value in group.values:
                context.qparams.setdefault(value.name or "", qparams)
            if group.copied:
                copy = _decide(group, "activation", context)
                context.copies |= {value.name or "": copy for value in group.copied}
        return len(context.qparams) - before


def _decide(group: Group, role: str, context: Context) -> QParams:
    """Return the parameters of the group's values, or of their uint8 copies."""
    fixed = [context.qparams[v.name or ""] for v in group.values if v.name in context.qparams]
    if not group.residual and fixed and all(fixed[0].same_as(other) for other in fixed[1:]):
        return fixed[0]
    spec = group_spec(group, role, context)
    return choose_qparams(*group_range(group, spec, context), spec)
