"""From a model to a proven one: what happens when a fold is wrong, or cannot be told right from wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import build, count

import bnfold
from bnfold import apply, folding, repair
from bnfold.absorb import conv
from bnfold.absorb.port import Rewrite, Scaled
from bnfold.errors import OptionError, VerificationError
from bnfold.verify import VerifyReport

MODEL = build(
    "float[2,4,5,5] x",
    "a = Conv(x, W)\nn = BN3(a)\nr = Relu(n)\nb = Conv(r, V)\ny = BNpos4(b)",
    W=(3, 4, 2, 2),
    V=(4, 3, 1, 1),
)


@pytest.fixture
def one_wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes into the first convolution is one percent off in one channel."""
    right = conv.rewrite

    def wrong(node: Any, *affines: Any) -> Rewrite:
        rewrite = right(node, *affines)
        if node.input(1) != "W":
            return rewrite
        scaled = next(change for change in rewrite.changes if isinstance(change, Scaled))
        factor = np.array(scaled.factors[0])
        factor[0, 1] *= 1.01
        others = tuple(change for change in rewrite.changes if change is not scaled)
        return Rewrite(node, (Scaled(scaled.position, scaled.shape, (factor,)), *others))

    monkeypatch.setattr(apply.conv, "rewrite", wrong)


@pytest.mark.usefixtures("one_wrong_fold")
def test_a_wrong_fold_is_taken_back_and_the_right_one_kept() -> None:
    result = bnfold.fold(MODEL)
    assert count(result.model, "BatchNormalization") == 1
    assert [entry.code for entry in result.report.withdrawn] == ["withdrawn"]
    assert result.report.withdrawn[0].node == "BatchNormalization:n"
    assert [entry.node for entry in result.report.folded] == ["BatchNormalization:y"]
    assert result.report.verification


@pytest.mark.usefixtures("one_wrong_fold")
def test_strict_makes_it_an_error_and_writes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(MODEL, source)
    target.write_bytes(b"what stood here before")
    with pytest.raises(VerificationError, match="differs from the original"):
        bnfold.fold_file(source, target, bnfold.FoldOptions(strict=True))
    assert target.read_bytes() == b"what stood here before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


@pytest.mark.usefixtures("one_wrong_fold")
def test_a_file_is_written_without_the_wrong_fold(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(MODEL, source)
    report = bnfold.fold_file(source, target)
    assert [entry.node for entry in report.withdrawn] == ["BatchNormalization:n"]
    assert count(onnx.load(target), "BatchNormalization") == 1
    assert bnfold.verify(source, target)


def test_excluded_nodes_stay_and_excluded_codes_are_not_listed() -> None:
    options = bnfold.FoldOptions(skip=("BatchNormalization:n",), verify=False)
    result = bnfold.fold(MODEL, options)
    assert [(entry.node, entry.code) for entry in result.report.kept] == [("BatchNormalization:n", "excluded")]
    quiet = bnfold.FoldOptions(skip=("BatchNormalization:n",), skip_codes=("excluded",), verify=False)
    assert not bnfold.fold(MODEL, quiet).report.kept


def test_only_batch_norms() -> None:
    model = build("float[2,4,5,5] x", "c = Conv(x, W)\nm = Mul(c, k)\ny = Relu(m)", W=(3, 4, 2, 2), k=np.float32(2))
    assert not bnfold.fold(model, bnfold.FoldOptions(only="batchnorm", verify=False)).report.folded
    assert bnfold.fold(model, verify=False).report.folded


@pytest.mark.parametrize("options", [{"only": "norms"}, {"skip_codes": ("paddin",)}])
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"not known|does not exist"):
        bnfold.fold(MODEL, bnfold.FoldOptions(**options))


def test_overflow_of_a_streamed_weight_excludes_its_operator(tmp_path: Path) -> None:
    """The weight is large enough to be a reference, and only while it is written does it turn out not to fit."""
    weight = np.full((64, 64, 1, 1), 6e4, np.float16)
    parameters = [np.full(64, v, np.float16) for v in (2, 0, 0, 1)]
    names = ["g", "b", "m", "v"]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "W"], ["c"]),
        onnx.helper.make_node("BatchNormalization", ["c", *names], ["y"]),
    ]
    half = onnx.TensorProto.FLOAT16
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", half, (1, 64, 2, 2))],
        [onnx.helper.make_tensor_value_info("y", half, (1, 64, 2, 2))],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip([weight, *parameters], ["W", *names], strict=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    assert [entry.code for entry in bnfold.fold(model, verify=False).report.kept] == ["overflow"]
    onnx.save(model, tmp_path / "in.onnx")
    report = bnfold.fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", verify=False)
    assert [entry.code for entry in report.kept] == ["overflow"]


# -- folds that no site can be blamed for ------------------------------------------------------------------------------

ROW = build(
    "float[1,2,3,3] x",
    "".join(
        f"c{i} = Conv({'x' if i == 0 else f'r{i - 1}'}, W)\nn{i} = BN2(c{i})\nr{i} = Relu(n{i})\n" for i in range(16)
    ),
    "float[1,2,3,3] r15",
    W=(2, 2, 1, 1),
)


def blind(monkeypatch: pytest.MonkeyPatch, *wrong: str, blames_from: int = 0) -> list[int]:
    """A proof that only sees whether one of the wrong folds is in the model; returns how many folds each one saw.

    From as few as ``blames_from`` folds on it names the wrong one.
    """
    seen: list[int] = []

    def prove(_original: object, _result: object, folded: folding.Folding, _options: object) -> VerifyReport:
        labels = [entry.node for entry in folded.folded]
        seen.append(len(labels))
        bad = tuple(label for label in labels if label in wrong)
        if not bad:
            return VerifyReport("equal", "", equal=True)
        blamed = bad if len(labels) <= blames_from else ()
        return VerifyReport("different", "outputs differ", equal=False, blamed=blamed)

    monkeypatch.setattr(repair, "_prove", prove)
    return seen


@pytest.mark.parametrize("wrong", [(0,), (15,), (7,), (3, 12), (0, 1, 15), tuple(range(16))])
def test_only_the_folds_that_fail_are_withdrawn_when_none_can_be_blamed(
    monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...]
) -> None:
    labels = {f"BatchNormalization:n{i}" for i in wrong}
    seen = blind(monkeypatch, *labels)
    report = bnfold.fold(ROW).report
    assert {entry.node for entry in report.withdrawn} == labels
    assert len(report.folded) == 16 - len(wrong)
    assert len(seen) <= 2 + len(wrong) * 5, "a search for one of 16 takes four proofs and the one that follows"


def test_a_site_that_can_be_blamed_on_the_way_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = blind(monkeypatch, "BatchNormalization:n2", blames_from=8)
    report = bnfold.fold(ROW).report
    assert [entry.node for entry in report.withdrawn] == ["BatchNormalization:n2"]
    assert seen == [16, 0, 8, 15]


def test_what_differs_without_any_fold_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(repair, "_prove", lambda *_: VerifyReport("different", "outputs differ", equal=False))
    onnx.save(ROW, tmp_path / "in.onnx")
    with pytest.raises(VerificationError, match="outputs differ"):
        bnfold.fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.usefixtures("one_wrong_fold")
def test_a_wrong_fold_is_found_from_the_outputs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prove = repair._prove
    monkeypatch.setattr(repair, "_prove", lambda *arguments: replace(prove(*arguments), blamed=()))
    result = bnfold.fold(MODEL)
    assert [entry.node for entry in result.report.withdrawn] == ["BatchNormalization:n"]
    assert [entry.node for entry in result.report.folded] == ["BatchNormalization:y"]
