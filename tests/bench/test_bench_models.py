"""The bench on real, tiny models: what is measured is checked, never how fast it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import bnfold
from bnfold.bench import BenchOptions, Start, child, machine
from bnfold.bench.child import answer, peak_bytes
from bnfold.bench.facts import multiply_adds, operator_counts
from bnfold.bench.runner import bound_run
from bnfold.bench.startup import compare_starts
from bnfold.errors import ModelReadError, OptionError, ProviderError, RuntimeMissingError
from bnfold.report import dumps
from bnfold.runtime import CUDA, Level

pytest.importorskip("onnxruntime")

FAST = BenchOptions(budget=0.02, warm_up=0.0, min_sample=1e-5, processes=0)

ORIGINAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float[3] one = {1,1,1}, float[3] zero = {0,0,0}>
{
    h = MatMul(x, w)
    y = BatchNormalization(h, one, zero, zero, one)
}
"""
FOLDED = ORIGINAL.replace("h = MatMul(x, w)\n    y = BatchNormalization(h, one, zero, zero, one)", "y = MatMul(x, w)")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "original.onnx", tmp_path / "folded.onnx"
    for path, text in zip(paths, (ORIGINAL, FOLDED), strict=True):
        onnx.save(parser.parse_model(text), path)
    return paths


def test_rows_cover_levels_batches_and_threads(pair: tuple[Path, Path]) -> None:
    options = BenchOptions(budget=0.02, warm_up=0.0, min_sample=1e-5, processes=0, batches=(1, 5), threads=(1, 2))
    report = bnfold.bench(*pair, options)
    found = [(row.threads, row.batch, row.level) for row in report.rows]
    levels = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    assert found == [(t, b, level) for t in (1, 2) for b in (1, 5) for level in levels]
    assert report.headline is report.rows[1]
    for row in report.rows:
        assert len(row.samples.original) == len(row.samples.folded) == row.original.count >= 2
        assert 0 < row.original.min <= row.original.median
        assert row.speedup.low <= row.speedup.median <= row.speedup.high
        assert row.foreign_nodes == (0, 0)


def test_a_row_takes_five_pairs_of_sessions_or_says_so(pair: tuple[Path, Path]) -> None:
    row = bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "budget": 30.0, "precision": 9.0})).rows[0]
    assert len(row.samples.sessions) == len(row.control.sessions) == 5
    assert sum(row.samples.sessions) == len(row.samples.original)
    assert row.stopped == "precision"
    row = bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "budget": 1e-6})).rows[0]
    assert len(row.samples.sessions) == 1
    assert "sessions" in {caution.code for caution in row.cautions}


def test_facts_say_what_folding_removed(pair: tuple[Path, Path]) -> None:
    report = bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "batches": (5,)}))
    before, after = report.original, report.folded
    assert (before.operators, before.norms, before.parameters, before.multiply_adds) == (2, 1, 18, 5 * 12 + 15)
    assert (after.operators, after.norms, after.multiply_adds) == (1, 0, 60)
    assert before.file_bytes == pair[0].stat().st_size


def test_json_has_the_raw_samples(pair: tuple[Path, Path]) -> None:
    report = bnfold.bench(*pair, FAST)
    data = json.loads(dumps(report))
    assert data["schema"] == "bnfold/bench@1"
    row = data["rows"][1]
    assert row["level"] == "ORT_ENABLE_ALL"
    assert {"median", "low", "high"} <= row["speedup"].keys()
    assert {"median", "mad", "min", "p90"} <= row["original"].keys()
    assert row["samples"]["original"] == list(report.rows[1].samples.original)
    assert {"provider", "batch", "threads", "noise", "verdict"} <= row.keys()


def test_models_in_memory_and_progress(pair: tuple[Path, Path]) -> None:
    steps: list[str] = []
    models = [onnx.load(path) for path in pair]
    report = bnfold.bench(*models, FAST, progress=lambda what, *_: steps.append(what))
    assert report.original.name == "original"
    assert steps == ["ORT_DISABLE_ALL, 1 thread", "ORT_ENABLE_ALL, 1 thread", "start-up and memory"]


def test_model_in_memory_with_data_elsewhere_is_refused(pair: tuple[Path, Path]) -> None:
    model = onnx.load(pair[0])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, pair[0], save_as_external_data=True, location="data", size_threshold=0)
    with pytest.raises(OptionError, match="path of the model"):
        bnfold.bench(onnx.load(pair[0], load_external_data=False), pair[1], FAST)


def test_fresh_processes_are_asked_in_random_order_and_summarised(pair: tuple[Path, Path]) -> None:
    asked: list[dict[str, Any]] = []

    def ask(question: dict[str, Any]) -> Start:
        asked.append(question)
        folded = question["model"].endswith("folded.onnx")
        return Start(1.0 if folded else 4.0, 0.1, 50 if folded else 80, 40)

    options = BenchOptions(processes=5, seed=1)
    levels = (Level.DISABLE_ALL, Level.ALL)
    rows = compare_starts(pair, levels, {"x": np.zeros((1, 4), np.float32)}, options, ask)
    assert [(row.level, row.create_speedup, row.folded.peak_bytes) for row in rows] == [
        ("ORT_DISABLE_ALL", 4.0, 50),
        ("ORT_ENABLE_ALL", 4.0, 50),
    ]
    assert len(asked) == 20
    assert len({question["model"] for question in asked[::2]}) == 2
    assert compare_starts(pair, levels, {"x": np.array(["a"], object)}, options, ask) == ()


def test_a_real_fresh_process_answers(pair: tuple[Path, Path]) -> None:
    report = bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "processes": 1}))
    start = report.starts[0].original
    assert start.create > 0
    assert start.peak_bytes >= start.baseline_bytes > 1_000_000


def test_child_answers_in_process(pair: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", a0=np.zeros((2, 4), np.float32))
    request = {
        "model": str(pair[0]), "level": "ORT_ENABLE_ALL", "provider": "CPUExecutionProvider", "threads": 1,
        "tf32": False, "feeds": str(tmp_path / "feeds.npz"), "inputs": ["x"],
    }  # fmt: skip
    found = answer(request)
    assert found["create"] > 0
    lag = 1 << 20  # the kernel counts pages per core and adds them up now and then, so that a peak can shrink a little
    assert found["peak_bytes"] <= peak_bytes() + lag


def test_fresh_process_that_fails_says_why(pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(RuntimeMissingError, match="a fresh process failed"):
        compare_starts((broken, pair[1]), (Level.ALL,), {"x": np.zeros((1, 4), np.float32)}, BenchOptions())


def test_fixed_batch_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(parser.parse_model(FOLDED.replace("N,", "2,")), path)
    with pytest.raises(OptionError, match="fixed at 2"):
        bnfold.bench(path, path, BenchOptions(**{**_fields(FAST), "batches": (8,)}))
    assert bnfold.bench(path, path, BenchOptions(**{**_fields(FAST), "batches": (2,)})).rows


def test_different_inputs_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(parser.parse_model(FOLDED.replace("x", "z")), other)
    with pytest.raises(OptionError, match="different inputs"):
        bnfold.bench(pair[0], other, FAST)


def test_missing_file_and_missing_provider(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelReadError):
        bnfold.bench(tmp_path / "none.onnx", pair[1], FAST)
    if not cuda_is_there():
        with pytest.raises(ProviderError):
            bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "provider": CUDA}))


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
def test_cuda_binds_device_buffers(pair: tuple[Path, Path], graph: bool) -> None:
    if not cuda_is_there():
        pytest.skip("no CUDA provider")
    report = bnfold.bench(*pair, BenchOptions(**{**_fields(FAST), "provider": CUDA, "cuda_graph": graph}))
    assert report.rows[0].provider == "CUDAExecutionProvider"


def test_outputs_that_cannot_be_bound_run_the_plain_way(tmp_path: Path) -> None:
    path = tmp_path / "sequence.onnx"
    text = FOLDED.replace("float[N, 3] y", "seq(float[N, 3]) y").replace(
        "y = MatMul(x, w)", "h = MatMul(x, w)\n y = SequenceConstruct(h)"
    )
    onnx.save(parser.parse_model(text), path)
    assert bnfold.bench(path, path, FAST).rows


@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        ("y = Conv<pads=[1,1,1,1]>(x, w)", "6,4,3,3", 6 * 5 * 5 * 4 * 9),
        ("y = Conv<group=2, strides=[2,2]>(x, w)", "6,2,3,3", 6 * 2 * 2 * 2 * 9),
        ("y = ConvTranspose<strides=[2,2]>(x, w)", "4,6,2,2", 4 * 5 * 5 * 6 * 4),
        ("y = Mul(x, x)", "1", 100),
        ("y = Relu(x)", "1", 0),
    ],
)
def test_multiply_adds_by_hand(body: str, shape: str, expected: int) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,5,5] x) => (float[a,b,c,d] y) '
        f"<float[{shape}] w> {{ {body} }}"
    )
    model = parser.parse_model(text.replace(f"<float[{shape}] w>", ""))
    sizes = [int(size) for size in shape.split(",")]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(sizes, np.float32), "w"))
    assert multiply_adds(model, {"x": np.zeros((1, 4, 5, 5))}) == expected


def test_multiply_adds_of_gemm_and_of_unknown_shapes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "c" : 1]>
    g (float[K, M] x) => (float[M, 3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { BODY }"""
    gemm = parser.parse_model(text.replace("BODY", "y = Gemm<transA=1>(x, w)"))
    unknown = parser.parse_model(text.replace("BODY", "h = c.Strange(x) y = MatMul(h, w)"))
    feeds = {"x": np.zeros((4, 7))}
    assert multiply_adds(gemm, feeds) == 7 * 3 * 4
    assert multiply_adds(unknown, feeds) is None


def test_machine_tells_what_it_can(tmp_path: Path) -> None:
    found = machine.look_at_machine("CPUExecutionProvider")
    assert found.cores >= 1
    assert found.processor
    (tmp_path / "scaling_governor").write_text("powersave\n")
    assert machine.governor(tmp_path) == "powersave"
    assert machine.governor(tmp_path / "none") is None


@pytest.mark.parametrize(("online", "battery"), [("0", True), ("1", False)])
def test_battery_means_a_known_supply_that_is_off(tmp_path: Path, online: str, battery: bool) -> None:
    for name, kind in (("AC", "Mains"), ("BAT0", "Battery")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(kind + "\n")
    (tmp_path / "AC" / "online").write_text(online + "\n")
    (tmp_path / "odd").mkdir()
    assert machine.on_battery(tmp_path) is battery
    assert machine.on_battery(tmp_path / "none") is False


def test_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("not here")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(machine.os, "getloadavg", refuse)
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    found = machine.look_at_machine("CPUExecutionProvider")
    assert found.load is None
    assert found.cores >= 1
    assert peak_bytes() > 1_000_000


def test_gpu_name_comes_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="NVIDIA H200\nother\n"))
    assert machine.look_at_machine("CUDAExecutionProvider").device == "NVIDIA H200"

    def refuse(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", refuse)
    assert machine.look_at_machine("CUDAExecutionProvider").device is None


def test_child_prints_one_json_line(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "answer", lambda request: {"peak_bytes": request["threads"]})
    monkeypatch.setattr(child.sys, "argv", ["child", '{"threads": 3}'])
    child.main()
    assert capsys.readouterr().out == '{"peak_bytes": 3}\n'


class FakeBinding:
    """Counts how often the outputs were waited for."""

    waits = 0

    def synchronize_outputs(self) -> None:
        self.waits += 1


def test_device_outputs_are_waited_for() -> None:
    session: Any = SimpleNamespace(evaluator="fake", raw=SimpleNamespace(run_with_iobinding=lambda _: None))
    on_device, on_host = FakeBinding(), FakeBinding()
    for binding in (on_device, on_host):
        bound_run(session, binding, None, wait=binding is on_device)()
    assert (on_device.waits, on_host.waits) == (2, 0)


def test_bound_run_that_fails_names_the_runtime() -> None:
    def fail(_: Any) -> None:
        raise ValueError("no kernel\nlong story")

    session: Any = SimpleNamespace(evaluator="fake 1.0", raw=SimpleNamespace(run_with_iobinding=fail))
    with pytest.raises(RuntimeMissingError, match=r"fake 1\.0 cannot run the model: no kernel$"):
        bound_run(session, FakeBinding(), None, wait=False)


def test_facts_look_into_subgraphs_functions_and_other_domains() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "c" : 1]>
        g (float[2,2] x, bool b, seq(float[2]) s) => (float[2,2] y, seq(float[2]) t)
        <float[2,2] w = {1,2,3,4}>
        {
            k = Mul(w, w)
            v = Identity(k)
            f = c.Twice(x)
            h = If(b) <then_branch = t1 () => (float[2,2] o) { o = MatMul(x, v) },
                       else_branch = e1 () => (float[2,2] o) { o = Relu(x) }>
            y = Add(h, h)
            t = Identity(s)
        }
        <domain: "c", opset_import: ["" : 17]> Twice (a) => (r) { r = Add(a, a) }"""
    )
    assert operator_counts(model)["Add"] == 2
    assert operator_counts(model)["MatMul"] == 1
    assert multiply_adds(model, {"x": np.zeros((2, 2)), "b": np.array(True), "s": []}) == 4


def test_facts_of_a_model_that_cannot_be_inferred(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    model = parser.parse_model(FOLDED.replace("float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}", "float[2] w = {1,2}"))
    assert multiply_adds(model, {"x": np.zeros((1, 4))}) is None


def cuda_is_there() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _fields(options: BenchOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in BenchOptions.__slots__}
