"""The WebAssembly bundle in headless Chromium: the page checks itself and says what it found."""

import re
from pathlib import Path

import pytest

from edgeq.tvm.devices import DEVICES
from edgeq.tvm.toolchain import missing_tools, modules

pytest.importorskip("tvm", reason="needs TVM: pip install edgeq[tvm]")

from tests import tvm_programs
from tests.chromium import run_chromium, served

pytestmark = [pytest.mark.tvm, pytest.mark.emulated]
DEVICE = DEVICES["tvm-wasm32"]


@pytest.fixture(scope="module")
def bundle() -> dict[str, bytes]:
    if missing := missing_tools(DEVICE, run=False):
        pytest.skip(f"needs {'; '.join(missing)}")
    files = dict(tvm_programs.sources(DEVICE).files)
    return files | modules(files, DEVICE)


def page(files: dict[str, bytes], folder: Path, name: str = "index.html") -> str:
    """Return the page as the browser leaves it."""
    content = folder / "served"
    content.mkdir()
    for path, data in files.items():
        (content / path).write_bytes(data)
    with served(content) as address:
        options = ("--virtual-time-budget=20000", "--dump-dom", f"{address}/{name}")
        return run_chromium(folder, *options)[0]


def test_the_page_compares_every_element_and_says_so(bundle, tmp_path):
    text = page(bundle, tmp_path)
    assert '<p id="verdict" class="passed">Errors: 0 out of 1680 elements, in 4 runs</p>' in text
    assert re.search(r'<p id="latency">Median of a run: [0-9.e-]+ ms.</p>', text)


def test_the_page_finds_a_changed_byte(bundle, tmp_path):
    source = tvm_programs.altered_weight(bundle)
    model = modules(source, DEVICE)["edgeq_model.wasm"]
    text = page(bundle | {"edgeq_model.wasm": model}, tmp_path)
    found = re.search(r'<p id="verdict" class="failed">Errors: (\d+) out of 1680(.*)</p>', text)
    assert found is not None and int(found[1]) > 0
    assert "First difference: output 'codes', feed 0, element" in found[2]


def test_other_pages_call_the_model(bundle, tmp_path):
    image = f"new Uint8Array({tvm_programs.IMAGE_ELEMENTS}).fill(117)"
    script = f"""<pre id="found"></pre><script type="module">
    import {{ load }} from "./edgeq_model.js";
    const model = await load();
    const {{ codes }} = model.run({{ image: {image} }});
    const reals = model.reals(model.outputs[0], codes);
    const again = model.codes(model.outputs[0], reals);
    let refused = "";
    try {{ model.run({{ image: new Uint8Array(3) }}); }}
    catch (error) {{ refused = error.message; }}
    document.getElementById("found").textContent =
      `${{codes.join(" ")}}|${{again.join(" ")}}|${{refused}}`;
    </script>"""
    text = page(bundle | {"other.html": script.encode()}, tmp_path, "other.html")
    found = re.search(r'<pre id="found">(.*)</pre>', text)
    assert found is not None
    codes, again, refused = found[1].split("|")
    expected = tvm_programs.expected_of_zero()["codes"]
    assert codes == again == " ".join(map(str, expected.ravel()))
    assert refused == "input 'image' takes a Uint8Array of 126 elements"
