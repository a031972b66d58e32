"""From torch: exported, checked against torch, and refused where that would run foreign code."""

import copy
import importlib
import pickle
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from edgeq.cli import app
from edgeq.errors import ModelError
from edgeq.export import _compare_output, export, export_factory, export_pt2
from edgeq.graph import constant, to_bytes
from edgeq.load import Loaded, normalize
from edgeq.passing import Context, run_pipeline
from edgeq.recipe import load_recipe
from edgeq.targeting import Capabilities

NO_SAMPLES: Any = ()
NET = """
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(4)
            self.drop = torch.nn.Dropout(0.5)
            self.head = torch.nn.Linear(4, 5)

        def forward(self, image):
            x = torch.relu(self.norm(self.conv(image))).mean((2, 3))
            return self.head(self.drop(x.view(x.size(0), -1)))

    def make():
        torch.manual_seed(0)
        return Net(), (torch.randn(2, 3, 8, 8),), ({0: torch.export.Dim("batch")},)

    def make_static():
        return make()[0], {"image": torch.randn(1, 3, 8, 8)}

    def make_nothing():
        return None

    def make_fail():
        return 1 / 0

    def make_broken():
        return Net(), (torch.randn(2, 7),)

    class Loop(torch.nn.Module):
        def forward(self, rows):
            return torch.stack([row * i for i, row in enumerate(rows)])

    def make_fixed():
        return Loop(), (torch.randn(2, 7),), ({0: torch.export.Dim("batch"), 1: None},)
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="pip install edgeq[torch]")
    pytest.importorskip("onnxscript", reason="pip install edgeq[torch]")
    name = f"net_{tmp_path.name}"  # a module of its own for every test
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NET), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def weight_of(model, name):
    """Return the array of the initializer `name`."""
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


def made(name):
    """Return what the test's module makes: module, examples, dynamic shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(".")
        return importlib.import_module(name).make()


@pytest.mark.torch
def test_factory_with_a_dynamic_batch(net):
    model = export_factory(f"{net}:make")
    assert [n.op_type for n in model.graph] == ["Conv", "Relu", "ReduceMean", "Reshape", "Gemm"]
    assert model.opset_imports[""] == 21
    (image,), (scores,) = model.graph.inputs, model.graph.outputs
    assert (image.name, str(image.shape)) == ("image", "[batch,3,8,8]")
    assert str(scores.shape) == "[batch,5]"
    assert to_bytes(export_factory(f"{net}:make")) == to_bytes(model)
    assert all(not node.metadata_props for node in model.graph), "paths of source files"
    context = Context(load_recipe("int8"), Capabilities(), NO_SAMPLES)
    run_pipeline("cleanup, fold-batchnorm, linear-form", model, context)
    assert "Gemm" in [n.op_type for n in model.graph]


@pytest.mark.torch
def test_named_examples_and_fixed_shapes(net):
    model = export_factory(f"{net}:make_static")
    assert str(model.graph.inputs[0].shape) == "[1,3,8,8]"


@pytest.mark.torch
def test_module_keeps_its_mode_and_its_weights(net):
    module, examples, shapes = made(net)
    module.train()
    before = copy.deepcopy(module.state_dict())
    model = export(module, examples, shapes)
    assert module.training and module.drop.training
    assert all(np.array_equal(before[k], v) for k, v in module.state_dict().items())
    saved = weight_of(model, "head.weight").copy()
    module.head.weight.data.zero_()
    assert weight_of(model, "head.weight").tobytes() == saved.tobytes(), "weights are copies"


@pytest.mark.torch
def test_pt2(net):
    import torch

    module, examples, shapes = made(net)
    program = torch.export.export(module.eval(), examples, dynamic_shapes=shapes)
    torch.export.save(program, "net.pt2")
    model = export_pt2("net.pt2")
    direct = export(module, examples, shapes)
    assert [n.op_type for n in model.graph] == [n.op_type for n in direct.graph]
    weights = [sorted(weight_of(m, name).tobytes() for name in m.graph.initializers)
               for m in (model, direct)]  # fmt: skip
    assert weights[0] == weights[1] and len(weights[0]) >= 4
    written = CliRunner().invoke(app, ["export", "net.pt2", "-o", "net.onnx"])
    assert written.exit_code == 0, written.output
    assert Path("net.onnx").read_bytes() == to_bytes(model)
    data = Path("net.pt2").read_bytes()
    for name, content, message in [
        ("cut.pt2", data[:1000], "or truncated"),
        ("text.pt2", b"no", "or truncated"),
        ("absent.pt2", None, "No such file"),
        ("net.pth", data, "pickles"),
    ]:
        if content is not None:
            Path(name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            export_pt2(name)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.torch
@pytest.mark.parametrize("member", ["data/sample_inputs/model.pt", "data/constants/custom_obj_0"])
def test_pt2_never_unpickles_code(net, tmp_path, member):
    import torch

    module, examples, _ = made(net)
    torch.export.save(torch.export.export(module.eval(), examples), "net.pt2")
    torch.save(Bomb(), "bomb.pt")
    with zipfile.ZipFile("net.pt2") as old, zipfile.ZipFile("evil.pt2", "w") as new:
        for name in old.namelist():
            if not name.endswith(member):
                new.writestr(name, old.read(name))
        root = old.namelist()[0].partition("/")[0]
        new.write("bomb.pt", f"{root}/{member}")
    with pytest.raises(ModelError):
        export_pt2("evil.pt2")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb())).close()
    assert (tmp_path / "exploded").exists(), "the bomb itself works"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("NET", "write MODULE:FACTORY"),
        ("NET:", "write MODULE:FACTORY"),
        ("no_such_module:make", "cannot import no_such_module"),
        ("NET:absent", "has no absent"),
        ("NET:torch", "has no torch that can be called"),
        ("NET:make_nothing", "must return"),
        ("NET:make_fail", "make_fail failed: ZeroDivisionError: division by zero"),
        ("NET:make_broken", "torch cannot export the module"),
        ("NET:make_fixed", r"torch fixed the dimension 'batch', the inputs are rows\[2,7\]"),
    ],
)
def test_bad_factories(net, spec, message):
    with pytest.raises(ModelError, match=message):
        export_factory(spec.replace("NET", net))


@pytest.mark.parametrize(
    ("rule", "found", "expected", "message"),
    [
        ("equal", [1.0, 2.0], [1.0, 2.0], None),
        ("within a ten-thousandth of the largest", [1.0, 2.0001], [1.0, 2.0], None),
        ("beyond it", [1.0, 2.001], [1.0, 2.0], "differs from torch's by 0.001"),
        ("NaN on one side", [1.0, np.nan], [1.0, 2.0], "differs"),
        ("shape", [[1.0, 2.0]], [1.0, 2.0], "has the shape"),
    ],
)
def test_comparison(rule, found, expected, message):
    arrays = np.array(found, np.float32), np.array(expected, np.float32)
    if message is None:
        _compare_output("y", *arrays)
        return
    with pytest.raises(ModelError, match=message):
        _compare_output("y", *arrays)


@pytest.mark.torch
def test_a_wrong_export_is_noticed(net, monkeypatch):
    def spoil(model: ir.Model, title: str) -> Loaded:
        wrong = weight_of(model, "head.weight") * np.float32(1.5)
        model.graph.initializers["head.weight"].const_value = ir.tensor(wrong)
        return normalize(model, title)

    monkeypatch.setattr(sys.modules["edgeq.export"], "normalize", spoil)
    with pytest.raises(ModelError, match="differs from torch's"):
        export_factory(f"{net}:make")


def test_without_torch(monkeypatch, tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"pip install edgeq\[torch\]"):
        export_pt2(tmp_path / "net.pt2")
