"""`edgeq inspect`: what is in a model or bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.commands.output import print_json, table
from edgeq.longest import MAX_DIM

if TYPE_CHECKING:
    from edgeq.certify import Certificate
    from edgeq.inspect import Inspection, QuantizedRow


def command(
    model: Annotated[str, typer.Argument(help="Model or bundle.", show_default=False)],
    target: Annotated[
        str, typer.Option("--target", help="Whose rules the certificate follows.")
    ] = "ort-cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show operators, sizes, quantization parameters and the certificate."""
    from edgeq.bundle import open_bundle
    from edgeq.inspect import inspect_model
    from edgeq.opening import open_model

    manifest = open_bundle(model).manifest if Path(model).is_dir() else None
    loaded = open_model(model)
    found = inspect_model(loaded)
    certificate = None
    if found.quantized:
        from edgeq.certify import certify
        from edgeq.targeting import find_target

        name, max_dim = target, MAX_DIM
        if manifest is not None:
            name, max_dim = manifest.target, manifest.max_dim
        certificate = certify(loaded, find_target(name).capabilities, max_dim)
    if as_json:
        entry = {"model": model, **found.to_json()}
        if manifest is not None:
            entry |= {"target": manifest.target, "recipe": manifest.recipe}
            entry["session_options"] = dict(manifest.session_options)
            entry["float_islands"] = list(manifest.certificate.islands)
        if certificate is not None:
            entry["certificate"] = [vars(proof) for proof in certificate.proofs]
        print_json(entry)
        return
    if manifest is not None:
        print(f"bundle for {manifest.target}, recipe {manifest.recipe}")
        for key, value in manifest.session_options.items():
            print(f"session option {key}={value}")
        print(f"float islands: {', '.join(manifest.certificate.islands) or 'none'}")
    print("\n".join(lines(found, certificate)))


def lines(found: "Inspection", certificate: "Certificate | None") -> list[str]:
    """Return the inspection as lines for people."""
    text = [f"input {row.name}: {row.dtype}{_shape(row.shape)}" for row in found.inputs]
    text += [f"output {row.name}: {row.dtype}{_shape(row.shape)}" for row in found.outputs]
    counts = [[name, str(count)] for name, count in found.operators.items()]
    text += ["", *table([["operator", "nodes"], *counts])]
    sizes = ", ".join(f"{size} {kind}" for kind, size in found.weight_bytes.items())
    text += ["", f"{found.parameters} parameters; bytes: {sizes or 'none'}"]
    if found.quantized:
        head = ["tensor", "role", "type", "granularity", "scale", "zero point"]
        text += ["", *table([head, *(_cells(row) for row in found.quantized)])]
    if certificate is not None:
        proofs = [[p.node, p.op_type, p.kind, p.detail] for p in certificate.proofs]
        text += ["", *table([["node", "operator", "proof", "detail"], *proofs])]
        text.append(f"{certificate.proven} proven, {len(certificate.unproven)} unproven")
    return text


def _cells(row: "QuantizedRow") -> list[str]:
    scales = _span(*(f"{scale:.6g}" for scale in row.scales))
    zero_points = _span(*(str(zero) for zero in row.zero_points))
    return [row.name, row.role, row.qtype, row.granularity, scales, zero_points]


def _shape(shape: tuple[int | str | None, ...] | None) -> str:
    if shape is None:
        return ""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
