"""What tests of altered files share: how many examples, what counts as survived, what is altered.

    python -m pytest tests/test_fuzz*.py --hypothesis-profile=long

runs 30 times as many examples, other ones each time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import onnx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgeq.check_folder import CheckError
from edgeq.cli import app
from edgeq.errors import EdgeqError

TIMES = settings().max_examples // 100  # 1, and more in the long mode
MEMORY = 3 * 2**30  # more than any example needs; see `limited_memory`
INTEGERS = st.one_of(
    st.sampled_from([-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 255, 2**20, 2**31, 2**40, 2**63 - 1]),
    st.integers(-(2**63), 2**63 - 1),
)
FLOATS = st.floats(width=32)
NAMES = st.sampled_from(["", "x", "y", "w", "v", "../out", "/etc/passwd", "a" * 300, "\0"])


def bounded(examples: int) -> settings:
    """Return the settings of a test that runs `examples` examples, in the long mode many more."""
    return settings(
        max_examples=examples * TIMES,
        deadline=timedelta(seconds=30),
        derandomize=TIMES == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextmanager
def limited_memory(most: int = MEMORY) -> Iterator[None]:
    """Let what asks for much more memory than it should fail at once."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def survives(call: Callable[[], object]) -> bool:
    """Run `call`; whether it was refused with a message. Any other exception is a failure."""
    try:
        call()
    except (CheckError, EdgeqError) as error:
        assert str(error) and error.exit_status in (1, 2)
        return True
    return False


def command(*arguments: object) -> bool:
    """Run a command of edgeq; whether it was refused with a message.

    What no message was written for is a failure.
    """
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code in (0, 1, 2), (found.exit_code, found.exception, found.stderr)
    assert "unexpectedly" not in found.stderr, found.stderr
    if found.exit_code != 2:
        return False
    assert "error: " in found.stderr and "\x1b" not in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
    return True


def alter(draw: st.DrawFn, proto: onnx.ModelProto) -> None:
    """Change one thing of a model in place: a node, an attribute, a weight, a type, a version."""
    graph = proto.graph
    parts = {
        "node": list(graph.node),
        "attribute": [a for node in graph.node for a in node.attribute],
        "initializer": list(graph.initializer),
        "type": [*graph.input, *graph.output, *graph.value_info],
        "opset": list(proto.opset_import),
        "graph": [graph],
    }
    kind = draw(st.sampled_from([k for k, items in parts.items() if items]))
    item = draw(st.sampled_from(range(len(parts[kind]))))
    _ALTER[kind](draw, parts[kind][item], graph)


def _names(graph: onnx.GraphProto) -> st.SearchStrategy[str]:
    found = {v.name for v in [*graph.input, *graph.output, *graph.initializer]}
    found |= {name for node in graph.node for name in node.output}
    return st.one_of(st.sampled_from(sorted(found) or [""]), NAMES)


def _node(draw: st.DrawFn, node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    what = draw(st.integers(0, 7))
    names = node.input if what % 2 else node.output
    if what <= 1 and len(names):
        names[draw(st.integers(0, len(names) - 1))] = draw(_names(graph))
    elif what <= 3 and len(names):
        del names[draw(st.integers(0, len(names) - 1))]
    elif what == 4:
        names.append(draw(_names(graph)))
    elif what == 5:
        node.op_type = draw(st.sampled_from([*OPERATORS, "", "Nothing"]))
    elif what == 6:
        node.domain = draw(st.sampled_from(["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "x.y"]))
    else:
        graph.node.remove(node)


def _attribute(draw: st.DrawFn, attribute: onnx.AttributeProto, graph: onnx.GraphProto) -> None:
    what = draw(st.integers(0, 6))
    if what == 0:
        attribute.i = draw(INTEGERS)
    elif what == 1:
        attribute.f = draw(FLOATS)
    elif what == 2:
        attribute.ints[:] = draw(st.lists(INTEGERS, max_size=5))
    elif what == 3:
        attribute.s = draw(st.binary(max_size=6))
    elif what == 4:
        attribute.name = draw(st.sampled_from(["axis", "axes", "to", "pads", "perm", "", "zzz"]))
    elif what == 5:
        attribute.type = draw(st.sampled_from(onnx.AttributeProto.AttributeType.values()))
    else:
        attribute.ref_attr_name = "axis"


def _initializer(draw: st.DrawFn, tensor: onnx.TensorProto, graph: onnx.GraphProto) -> None:
    what = draw(st.integers(0, 6))
    if what == 0:
        tensor.dims[:] = draw(st.lists(INTEGERS, max_size=4))
    elif what == 1 and len(tensor.dims):
        tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(INTEGERS)
    elif what == 2:
        tensor.data_type = draw(st.sampled_from(range(26)))
    elif what == 3:
        tensor.raw_data = tensor.raw_data[: draw(st.integers(0, 8))]
    elif what == 4:
        tensor.raw_data = draw(st.binary(min_size=len(tensor.raw_data) % 64, max_size=64))
    elif what == 5:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", draw(NAMES)), ("offset", str(draw(INTEGERS)))):
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.name = draw(_names(graph))


def _type(draw: st.DrawFn, value: onnx.ValueInfoProto, graph: onnx.GraphProto) -> None:
    what, tensor = draw(st.integers(0, 5)), value.type.tensor_type
    if what == 0:
        tensor.elem_type = draw(st.sampled_from(range(26)))
    elif what <= 2 and len(tensor.shape.dim):
        tensor.shape.dim[draw(st.integers(0, len(tensor.shape.dim) - 1))].dim_value = draw(INTEGERS)
    elif what == 3:
        tensor.shape.dim.add().dim_value = draw(INTEGERS)
    elif what == 4:
        value.name = draw(_names(graph))
    else:
        value.ClearField("type")


def _opset(draw: st.DrawFn, entry: onnx.OperatorSetIdProto, graph: onnx.GraphProto) -> None:
    entry.version = draw(st.sampled_from([-1, 0, 1, 6, 7, 9, 11, 13, 17, 22, 26, 999, 2**40]))
    if draw(st.integers(0, 5)) == 0:
        entry.domain = draw(st.sampled_from(["com.microsoft", "x.y"]))


def _graph(draw: st.DrawFn, graph: onnx.GraphProto, same: onnx.GraphProto) -> None:
    what = draw(st.integers(0, 5))
    if what == 0 and len(graph.node):
        graph.node.append(graph.node[draw(st.integers(0, len(graph.node) - 1))])
    elif what == 1:
        nodes = draw(st.permutations(list(graph.node)))
        del graph.node[:]
        graph.node.extend(nodes)
    elif what == 2:
        del graph.output[:]
    elif what == 3:
        del graph.input[:]
    elif what == 4 and len(graph.node):
        body = onnx.GraphProto()
        body.CopyFrom(graph)
        node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
        node.op_type = draw(st.sampled_from(["If", "Loop", "Scan"]))
        node.attribute.append(onnx.helper.make_attribute("then_branch", body))
        node.attribute.append(onnx.helper.make_attribute("body", body))
    else:
        graph.name = draw(NAMES)


_ALTER: dict[str, Callable[[st.DrawFn, Any, onnx.GraphProto], None]] = {
    "node": _node,
    "attribute": _attribute,
    "initializer": _initializer,
    "type": _type,
    "opset": _opset,
    "graph": _graph,
}
OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})
