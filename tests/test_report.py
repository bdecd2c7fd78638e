"""Reports as data: what becomes of values that JSON has no word for, and of libraries that are not there."""

from __future__ import annotations

import json
import sys
import types

import pytest

from bnfold.report import Counts, Folded, as_json, dumps, versions


def test_numbers_that_are_none_become_text() -> None:
    assert json.loads(dumps({"a": float("nan"), "b": [float("inf"), 1.5]})) == {"a": "nan", "b": ["inf", 1.5]}


def test_dataclasses_become_objects_with_their_fields_in_order() -> None:
    folded = Folded("n", "BatchNormalization", ("c",), "after Conv", ("n",))
    assert list(as_json(folded)) == ["node", "operator", "into", "route", "tensor", "scope"]
    assert as_json(folded)["into"] == ["c"]
    assert as_json(Counts(1, 2, 3, 4))["file_bytes"] is None


def test_versions_name_what_is_loaded_and_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", types.SimpleNamespace(__version__="1.2.3"))
    assert versions()["onnx"] == "1.2.3"
    assert versions().keys() <= {"bnfold", "python", "onnx", "numpy"}
    assert "onnxruntime" not in sys.modules
