"""From torch to ONNX, checked: the exported graph must give what the module gives.

The only module that imports torch, and only when one of its functions is called.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as onnx_passes
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph import OPSET
from edgeq.load import normalize
from edgeq.runtime import make_session

if TYPE_CHECKING:
    import torch

    TorchModel: TypeAlias = torch.nn.Module | torch.export.ExportedProgram

# Both sides are float32 with sums in another order: an element may differ by this share of the
# largest magnitude in its output. A wrong operator is off by far more.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6
_PLAIN = MappingProxyType({"session.disable_prepacking": "1"})  # weights are read where they lie


@dataclass(frozen=True)
class _Examples:
    """Example inputs as a call takes them."""

    args: tuple[object, ...]
    kwargs: dict[str, object]


def export(module: "TorchModel", example_inputs: object, dynamic_shapes: object = None) -> ir.Model:
    """Export a torch module.

    Args:
        module: A `torch.nn.Module`, exported in evaluation mode, or a `torch.export`ed program.
        example_inputs: A tensor, a tuple of positional inputs, or a mapping of named ones.
        dynamic_shapes: As `torch.export.export` takes them; None keeps every dimension fixed.

    Returns:
        A float32 graph of opset 21, whose every output was compared with torch's on the examples.

    Raises:
        ModelError: torch is absent, the export fails or fixes a dimension, or the results differ.
    """
    torch = _torch()
    examples = _examples(torch, example_inputs)
    with _evaluation_mode(module):
        program = _run_exporter(torch, module, examples, dynamic_shapes)
        expected = _run_module(torch, module, examples)
    onnx_passes.ClearMetadataAndDocStringPass()(program.model)  # traces of source files
    model = normalize(program.model, "the exported model").model
    _check_dynamic(torch, model, dynamic_shapes)
    _compare(torch, model, examples, expected)
    return _detached(model)


def export_factory(spec: str) -> ir.Model:
    """Export what `MODULE:FACTORY` returns: (module, example inputs[, dynamic shapes]).

    The module is looked for as Python does, and in the current folder.

    Raises:
        ModelError: It cannot be imported or called, or returns something else.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ModelError(f"{spec!r}: write MODULE:FACTORY, for example mynet:make")
    factory = _find(spec, name, attribute)
    try:
        result = factory()
    except Exception as error:  # the user's code can raise anything
        raise ModelError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise ModelError(f"{spec} must return (module, example inputs[, dynamic shapes])")
    return export(*result)


def _find(spec: str, name: str, attribute: str) -> Callable[[], object]:
    try:
        with _search_path(str(Path.cwd())):
            module = importlib.import_module(name)
    except Exception as error:  # importing runs code of the user's, which can raise anything
        cause = f"{type(error).__name__}: {error}"
        raise ModelError(f"{spec}: cannot import {name}: {cause}") from error
    factory: object = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(f"{spec}: module {name} has no {attribute} that can be called")
    return factory


def export_pt2(path: str | os.PathLike[str]) -> ir.Model:
    """Export a `.pt2` file that `torch.export.save` wrote, checked on the examples in it.

    Raises:
        ModelError: The file cannot be read without unpickling code, or holds no example inputs.
    """
    file = Path(path)
    if file.suffix.lower() != ".pt2":
        raise ModelError(
            f"{file}: edgeq does not open pickles, they can run any code; save the model with"
            " torch.export.save (.pt2), or export it with `edgeq export MODULE:FACTORY`"
        )
    torch = _torch()
    _refuse_objects(file)
    try:
        with _tensors_only(), _quiet():
            program = torch.export.load(file)
    except Exception as error:  # torch documents no exceptions for damaged files
        raise ModelError(f"{file}: torch cannot read it: {_first_line(error)}") from error
    if program.example_inputs is None:
        raise ModelError(
            f"{file}: it holds no example inputs; save what torch.export.export returns"
        )
    args, kwargs = program.example_inputs
    if args and kwargs:
        raise ModelError(f"{file}: its example inputs are positional and named; use one kind")
    return export(program, kwargs or args)


def _torch() -> types.ModuleType:
    try:
        importlib.import_module("onnxscript")  # torch's exporter needs it
        return importlib.import_module("torch")
    except ImportError as error:
        raise ModelError(f"{error}; torch models need `pip install edgeq[torch]`") from error


def _examples(torch: types.ModuleType, inputs: object) -> _Examples:
    if isinstance(inputs, Mapping):
        return _Examples((), dict(inputs))
    if isinstance(inputs, torch.Tensor):
        return _Examples((inputs,), {})
    if isinstance(inputs, Sequence):
        return _Examples(tuple(inputs), {})
    raise ModelError(
        f"example inputs: a tensor, a tuple or a mapping of tensors, not {type(inputs).__name__}"
    )


def _run_exporter(
    torch: types.ModuleType, module: "TorchModel", examples: _Examples, dynamic_shapes: object
) -> "torch.onnx.ONNXProgram":
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                examples.args,
                kwargs=examples.kwargs or None,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever the module's code or torch raises means the same here
        raise ModelError(f"torch cannot export the module: {_first_line(error)}") from error
    assert program is not None
    return program


def _check_dynamic(torch: types.ModuleType, model: ir.Model, dynamic_shapes: object) -> None:
    """Refuse a graph of fixed size where the module gave torch no other choice."""
    found = {str(dim) for value in model.graph.inputs for dim in value.shape or ()}
    for name in _dimension_names(torch, dynamic_shapes):
        if name not in found:
            shapes = ", ".join(f"{value.name}{value.shape}" for value in model.graph.inputs)
            raise ModelError(
                f"torch fixed the dimension {name!r}, the inputs are {shapes}: something in the"
                " module depends on its size (a loop over it, a comparison); change the module, or"
                f" leave {name!r} out of the dynamic shapes"
            )


def _dimension_names(torch: types.ModuleType, shapes: object) -> Iterator[str]:
    """Yield the names in what `torch.export.export` takes as dynamic shapes."""
    if isinstance(shapes, str):
        yield shapes
    elif isinstance(shapes, torch.export.Dim):
        yield str(shapes.__name__)
    elif isinstance(shapes, (Mapping, list, tuple)):
        for entry in shapes.values() if isinstance(shapes, Mapping) else shapes:
            yield from _dimension_names(torch, entry)


def _run_module(
    torch: types.ModuleType, module: "TorchModel", examples: _Examples
) -> list[NDArray[np.generic]]:
    call = module.module() if isinstance(module, torch.export.ExportedProgram) else module
    with torch.no_grad(), _quiet():
        result = call(*examples.args, **examples.kwargs)
    return [leaf.detach().numpy() for leaf in _tensors(torch, result)]


def _tensors(torch: types.ModuleType, tree: object) -> "list[torch.Tensor]":
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _compare(
    torch: types.ModuleType,
    model: ir.Model,
    examples: _Examples,
    expected: list[NDArray[np.generic]],
) -> None:
    names = [str(value.name) for value in model.graph.inputs]
    tensors = _tensors(torch, (examples.args, examples.kwargs))
    if len(names) != len(tensors):
        raise ModelError(
            f"the exported model has the inputs {', '.join(names) or 'none'}, but"
            f" {len(tensors)} tensors are in the example inputs"
        )
    feeds = {}
    for value, tensor in zip(model.graph.inputs, tensors, strict=True):
        assert value.dtype is not None
        feeds[str(value.name)] = tensor.detach().numpy().astype(value.dtype.numpy())
    found = make_session(model, options=_PLAIN, level="basic").run(None, feeds)
    if len(found) != len(expected):
        raise ModelError(f"torch gives {len(expected)} outputs, the exported model {len(found)}")
    for value, a, b in zip(model.graph.outputs, found, expected, strict=True):
        _compare_output(str(value.name), np.asarray(a), b)


def _compare_output(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        raise ModelError(
            f"exported model: output {name} has the shape {found.shape}, torch gives"
            f" {expected.shape}"
        )
    a, b = found.astype(np.float64), expected.astype(np.float64)
    limit = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(np.abs(b).max(initial=0.0))
    difference = float(np.abs(a - b).max(initial=0.0))
    if not difference <= limit:
        raise ModelError(
            f"exported model: output {name} differs from torch's by {difference:.3g} on the example"
            f" inputs, {limit:.3g} is allowed; torch's exporter translated an operator wrongly"
        )


def _detached(model: ir.Model) -> ir.Model:
    """Return the model with weights of its own."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def _refuse_objects(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{file}: not a file that torch.export.save wrote, or truncated"
        ) from error
    if any(name.rpartition("/")[2].startswith("custom_obj") for name in names):
        raise ModelError(
            f"{file}: it holds pickled objects besides tensors; edgeq does not open them"
        )


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Let torch.load refuse everything but tensors, wherever torch calls it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _evaluation_mode(module: "TorchModel") -> Iterator[None]:
    training = [m for m in module.modules() if m.training] if hasattr(module, "modules") else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def _search_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's chatter, which nobody can act on, away from the user's output."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
