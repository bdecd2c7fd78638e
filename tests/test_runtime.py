"""Sessions and execution providers."""

from __future__ import annotations

import sys
import types
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from bnfold import runtime
from bnfold.errors import OptionError, ProviderError, RuntimeMissingError
from bnfold.runtime import CPU, CUDA, Level, Provider, open_reference, open_session

CUDA_HERE = "CUDAExecutionProvider" in ort.get_available_providers()
needs_cuda = pytest.mark.skipif(not CUDA_HERE, reason="this onnxruntime has no CUDAExecutionProvider")


def linear() -> onnx.ModelProto:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { t = MatMul(x, w)\n y = Relu(t) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32) * 3, "w"))
    return model


X = {"x": np.array([[1.0, -2.0]], np.float32)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", CPU),
        ("CPU", CPU),
        ("CPUExecutionProvider", CPU),
        ("cuda", CUDA),
        ("Cuda:device_id=1", Provider("CUDAExecutionProvider", (("device_id", "1"),))),
        ("cuda:device_id=0, use_tf32=1", Provider("CUDAExecutionProvider", (("device_id", "0"), ("use_tf32", "1")))),
        ("tensorrt", Provider("TensorrtExecutionProvider")),
        ("OpenVINO", Provider("OpenVINOExecutionProvider")),
        ("XnnpackExecutionProvider", Provider("XnnpackExecutionProvider")),
    ],
)
def test_providers_are_read(text, expected):
    assert Provider.parse(text) == expected
    assert Provider.parse(expected) is expected
    assert Provider.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", ":device_id=0", "cuda:device_id", "cuda:=1"])
def test_bad_providers_are_refused(text):
    with pytest.raises(OptionError):
        Provider.parse(text)


@pytest.mark.parametrize("name", [n for n in ort.get_all_providers() if n not in ort.get_available_providers()])
def test_a_provider_that_is_not_built_in_is_an_error_with_the_list(name):
    with pytest.raises(ProviderError, match=r"has no .*it has .*CPUExecutionProvider"):
        open_session(linear(), provider=name)


def test_cuda_missing_names_the_pip_command():
    if CUDA_HERE:
        pytest.skip("it is there")
    with pytest.raises(ProviderError, match=r'pip install "bnfold\[cuda\]"'):
        open_session(linear(), provider="cuda")


class FakeSession:
    """What onnxruntime does when a provider cannot start: it drops it."""

    made: ClassVar[dict] = {}

    def __init__(self, _source, options, providers, provider_options):
        FakeSession.made = dict(zip(providers, provider_options, strict=True))
        self.options = options

    def get_providers(self):
        return ["CPUExecutionProvider"]


@pytest.fixture
def pretends_to_have_cuda(monkeypatch):
    preloaded = []
    fake = types.SimpleNamespace(
        InferenceSession=FakeSession,
        SessionOptions=ort.SessionOptions,
        RunOptions=ort.RunOptions,
        GraphOptimizationLevel=ort.GraphOptimizationLevel,
        OrtValue=ort.OrtValue,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: preloaded.append(True),
        __version__="0",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return preloaded


@pytest.mark.parametrize(
    ("asked", "arguments", "options"),
    [
        ("cuda", {}, {"use_tf32": "0"}),
        ("cuda", {"tf32": True}, {"use_tf32": "1"}),
        ("cuda:use_tf32=1", {}, {"use_tf32": "1"}),
        ("cuda", {"cuda_graph": True}, {"use_tf32": "0", "enable_cuda_graph": "1"}),
    ],
)
def test_a_dropped_provider_is_an_error(pretends_to_have_cuda, asked, arguments, options):
    with pytest.raises(ProviderError, match="dropped"):
        open_session(linear(), provider=asked, **arguments)
    assert FakeSession.made == {"CUDAExecutionProvider": options, "CPUExecutionProvider": {}}
    assert pretends_to_have_cuda == [True]


@pytest.mark.parametrize("found", [ImportError("no module"), None], ids=["missing", "broken"])
def test_a_missing_onnxruntime_names_the_pip_command(monkeypatch, found):
    def fail(name):
        if found is not None:
            raise found
        return types.ModuleType(name)

    monkeypatch.setattr(runtime.importlib, "import_module", fail)
    with pytest.raises(RuntimeMissingError, match=r'pip install "bnfold\[cpu\]"'):
        open_session(linear())


def test_models_come_as_paths_bytes_or_messages(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear(), path)
    for source in (path, str(path), path.read_bytes(), linear()):
        session = open_session(source)
        assert session.run(X)["y"].tolist() == [[3.0, 0.0]]
        assert (session.inputs, session.outputs, session.providers) == (("x",), ("y",), ("CPUExecutionProvider",))
        assert session.evaluator == f"onnxruntime {ort.__version__}"
        assert session.foreign_nodes == 0


@pytest.mark.parametrize("level", list(Level))
def test_levels(level):
    assert open_session(linear(), optimize=level).run(X)["y"].tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("arena", [True, False])
def test_memory_is_kept_between_runs_unless_told_otherwise(arena):
    session = open_session(linear(), arena=arena)
    assert session.raw.get_session_options().enable_cpu_mem_arena is arena
    assert session.run(X)["y"].tolist() == [[3.0, 0.0]]


def test_initializers_can_be_replaced_and_external_ones_given():
    replaced = open_session(linear(), initializers={"w": np.eye(2, dtype=np.float32)})
    assert replaced.run(X)["y"].tolist() == [[1.0, 0.0]]
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    given = open_session(model, external={"w": np.eye(2, dtype=np.float32) * 2})
    assert given.run(X)["y"].tolist() == [[2.0, 0.0]]


def test_a_profile_is_written(tmp_path):
    session = open_session(linear(), profile=tmp_path / "p", config={"session.disable_prepacking": "1"}, spin=True)
    session.run(X)
    assert session.raw.end_profiling().startswith(str(tmp_path / "p"))


@pytest.mark.parametrize("source", [b"", b"nonsense", "/nowhere/m.onnx"])
def test_what_cannot_be_opened_is_one_line(source):
    with pytest.raises(RuntimeMissingError) as raised:
        open_session(source)
    assert "\n" not in str(raised.value)


def test_a_failing_run_is_one_line(capfd):
    with pytest.raises(RuntimeMissingError, match="cannot run the model") as raised:
        open_session(linear()).run({"x": np.ones((1, 3), np.float32)})
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_models_above_two_gigabytes_come_as_paths(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", 10)
    with pytest.raises(RuntimeMissingError, match="give it as a path"):
        open_session(linear())
    onnx.save(linear(), tmp_path / "m.onnx")
    assert open_session(tmp_path / "m.onnx").run(X)["y"].tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("tells", [True, False])
def test_nodes_that_fell_back_are_counted_where_onnxruntime_tells(pretends_to_have_cuda, monkeypatch, tells):
    def group(name, nodes):
        return types.SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)

    def assignment(_):
        if not tells:
            raise RuntimeError("not recorded")
        return [group("CUDAExecutionProvider", ["a"]), group("CPUExecutionProvider", ["b", "c"])]

    monkeypatch.setattr(FakeSession, "get_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    for name in ("disable_fallback", "get_inputs", "get_outputs"):
        monkeypatch.setattr(FakeSession, name, lambda _: [], raising=False)
    monkeypatch.setattr(FakeSession, "get_provider_graph_assignment_info", assignment, raising=False)
    session = open_session(linear(), provider="cuda")
    assert session.foreign_nodes == (2 if tells else None)
    assert session.providers[0] == "CUDAExecutionProvider"


def test_the_reference_evaluator_answers_the_same_way():
    session = open_reference(linear())
    assert session.run(X, ["y"])["y"].tolist() == [[3.0, 0.0]]
    assert session.providers == ("ReferenceEvaluator",)
    assert session.evaluator == f"onnx.reference {onnx.__version__}"


def test_the_reference_evaluator_says_what_it_cannot_do():
    unknown = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "else": 1]> g (float[2] x) => (float[2] y) { y = else.Unknown(x) }'
    )
    with pytest.raises(RuntimeMissingError, match="reference evaluator"):
        open_reference(unknown)


@pytest.mark.cuda
@needs_cuda
def test_cuda_runs_and_counts_what_does_not():
    session = open_session(linear(), provider="cuda")
    assert session.providers[0] == "CUDAExecutionProvider"
    assert session.run(X)["y"].tolist() == [[3.0, 0.0]]
    assert session.foreign_nodes == 0
