"""Reading and writing models without their large tensors, and what must not happen on the way."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold import external, files, staging, streaming
from bnfold.blobs import FileBlob, MemoryBlob, ProtoBlob, ScaledBlob, Unrepresentable
from bnfold.datafile import DataFile
from bnfold.errors import BnfoldError, ModelReadError, ModelWriteError
from bnfold.files import Model, from_proto, load, stage, to_proto, total_bytes
from bnfold.model import MARKER
from bnfold.tensors import tensors

CORPUS = Path(os.environ.get("BNFOLD_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
ONNX_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


def weight(name: str, rows: int = 8, columns: int = 300, seed: int = 0) -> TensorProto:
    values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    return numpy_helper.from_array(values, name)


def make_model(*initializers: TensorProto, name: str = "g") -> ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    return helper.make_model(helper.make_graph([node], name, [x], [y], list(initializers)), ir_version=8)


def everywhere() -> ModelProto:
    """Return a model with a large tensor in every place that can hold one."""
    model = make_model(weight("w"), numpy_helper.from_array(np.float32([1, 2]), "small"))
    attribute = model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value")
    attribute.t.CopyFrom(weight("t", seed=1))
    attribute.tensors.append(weight("ts", seed=2))
    attribute.sparse_tensor.values.CopyFrom(weight("sv", seed=3))
    attribute.sparse_tensors.add().indices.CopyFrom(weight("si", seed=4))
    attribute.g.initializer.append(weight("g", seed=5))
    attribute.graphs.add().initializer.append(weight("gs", seed=6))
    model.graph.sparse_initializer.add().values.CopyFrom(weight("s", seed=7))
    model.training_info.add().algorithm.initializer.append(weight("train", seed=8))
    function = model.functions.add(name="f", domain="d")
    function.node.add().attribute.add(name="a").t.CopyFrom(weight("f", seed=9))
    function.attribute_proto.add(name="b").t.CopyFrom(weight("fa", seed=10))
    explicit = weight("explicit", seed=11)
    explicit.data_location = TensorProto.DEFAULT
    explicit.doc_string = "said what everybody assumes"
    explicit.external_data.add(key="note", value="without effect")
    model.graph.initializer.append(explicit)
    return model


def save(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def save_external(model: ModelProto, path: Path, location: str = "weights.bin") -> Path:
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def external_model(path: Path, **entries: str) -> Path:
    """Write a model with one tensor of 16 bytes whose external data entries are ``entries``."""
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return save(make_model(tensor), path)


def scale(model: Model, name: str, factor: float) -> None:
    for tensor in tensors(model.proto):
        if tensor.name == name:
            blob = model.blob(tensor)
            assert blob is not None
            shape = tuple(tensor.dims)
            model.attach(tensor, ScaledBlob(blob, tensor.data_type, shape, (np.full((shape[0], 1), factor),)))


def value(model: ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in tensors(model) if t.name == name)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# What must not happen: reading


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is no model\n", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x00\x01\x02\x03", "not an ONNX model"),
        (b"\x0b\x14", "protobuf cannot parse it"),
        (b"\x08\x08", "no graph"),
        (b"\x3a\xff\xff\x03" + b"x" * 9, "past the end"),
        (make_model(weight("w")).SerializeToString()[:-7], "past the end"),
        (make_model(weight("w")).SerializeToString()[:400], "past the end"),
        (make_model(name="abcd").SerializeToString().replace(b"abcd", b"ab\xff\xfe"), "not UTF-8"),
        (make_model(name=MARKER + "0").SerializeToString(), "reserves"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelReadError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["no.onnx", "no/such.onnx", "file/x.onnx", "nul\0.onnx", "x" * 300])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ModelReadError, match=r"no such file|cannot be opened"):
        load(tmp_path / missing)


def test_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelReadError, match="is a directory"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelReadError, match="not a regular file"):
        load(tmp_path / "pipe")


def failing(code: int) -> Any:
    """A stand-in for a system call that fails."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(make_model(), tmp_path / "m.onnx")
    path.chmod(0)
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with pytest.raises(ModelReadError, match="no permission"):
        load(path)


def test_a_model_that_protobuf_cannot_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where text and typed fields alone take 2 GiB."""
    model, proto = load(save(make_model(), tmp_path / "m.onnx")), make_model()

    class Huge:
        def SerializeToString(self, **_: object) -> bytes:
            raise EncodeError("too large")

    monkeypatch.setattr(files, "without_large_data", lambda *_: Huge())
    with pytest.raises(ModelReadError, match="too big for protobuf"):
        from_proto(proto)
    model.proto = Huge()  # type: ignore[assignment]
    with pytest.raises(ModelWriteError, match="too big for protobuf"):
        stage(model, tmp_path / "out.onnx")
    assert names_in(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("what", [{"name": "abcd"}, {"node": "abcd"}], ids=["graph", "node"])
def test_text_that_is_no_utf8_is_refused_in_memory_too(what: dict[str, str]) -> None:
    model = make_model(name=what.get("name", "g"))
    model.graph.node[0].name = what.get("node", "n")
    data = model.SerializeToString().replace(b"abcd", b"ab\xff\xfe")
    with pytest.raises(ModelReadError, match="not UTF-8"):
        from_proto(ModelProto.FromString(data))


def test_of_raw_data_that_is_given_twice_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    first, last = weight("w"), weight("w", seed=1)
    twice = first.SerializeToString() + TensorProto(raw_data=last.raw_data).SerializeToString()
    graph = make_model().graph.SerializeToString() + b"\x2a" + files.wire.encode(len(twice)) + twice
    path.write_bytes(b"\x08\x08\x3a" + files.wire.encode(len(graph)) + graph)
    stage(load(path), tmp_path / "out.onnx").commit()
    np.testing.assert_array_equal(value(onnx.load(tmp_path / "out.onnx"), "w"), numpy_helper.to_array(last))


def test_a_disk_that_cannot_be_read_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(make_model(), tmp_path / "m.onnx")
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(ModelReadError, match="cannot be read: Input/output error"):
        load(path)


def test_nesting_that_protobuf_builds_but_does_not_read(tmp_path: Path) -> None:
    model = make_model()
    graph = model.graph
    for _ in range(32):
        graph = graph.node.add().attribute.add().g
    graph.input.append(helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N"]))
    with pytest.raises(ModelReadError, match="protobuf reads 100 messages inside one another"):
        files.from_proto(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelReadError, match="nested more than 100"):
        load(path)


def test_deep_nesting_is_refused_in_words(tmp_path: Path) -> None:
    model = make_model()
    graph = model.graph
    for _ in range(60):
        graph = graph.node.add().attribute.add().g
    path = tmp_path / "m.onnx"
    try:
        path.write_bytes(model.SerializeToString())
    except Exception:  # protobuf does not write it either: put the levels together by hand
        data = b""
        for _ in range(60):
            for key in (b"\x32", b"\x2a", b"\x0a"):
                data = key + files.wire.encode(len(data)) + data
        path.write_bytes(b"\x3a" + files.wire.encode(len(data)) + data)
    with pytest.raises(ModelReadError, match="nested more than 100"):
        load(path)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_gives_a_model_or_a_refusal_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(everywhere().SerializeToString())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            # Headers are where damage matters, and most of them are near a boundary of the raw data.
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "m.onnx"
    path.write_bytes(content)
    try:
        model = load(path)
        stage(model, folder / "out.onnx").commit(flush=False)
    except BnfoldError:
        return
    assert load(folder / "out.onnx").proto.HasField("graph")


def outside(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(64))
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "data").write_bytes(bytes(64))
    (inside / "out").symlink_to("../secret")
    (inside / "up").symlink_to("..")
    (inside / "within").symlink_to("data")
    (inside / "folder").mkdir()
    return inside / "m.onnx"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../secret"}, "outside the model's folder"),
        ({"location": "folder/../../secret"}, "outside the model's folder"),
        ({"location": "folder\\..\\..\\secret"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "C:\\secret"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"offset": "0"}, "outside the model's folder"),
        ({"location": "da\0ta"}, "outside the model's folder"),
        ({"location": "out"}, "leads out"),
        ({"location": "up/secret"}, "leads out"),
        ({"location": "folder"}, "is a directory"),
        ({"location": "absent"}, "not there"),
        ({"location": "data/x"}, "cannot be read"),
        ({"location": "data", "offset": "-1"}, "not a size"),
        ({"location": "data", "offset": "1e3"}, "not a size"),
        ({"location": "data", "offset": "9" * 5000}, "not a size"),
        ({"location": "data", "offset": "²"}, "not a size"),
        ({"location": "data", "length": "-16"}, "not a size"),
        ({"location": "data", "offset": "49"}, "has 64"),
        ({"location": "data", "offset": "9999999999999999999"}, "has 64"),
        ({"location": "data", "length": "8"}, "needs 16"),
        ({"location": "data", "length": "999999999999"}, "needs 16"),
        ({"location": "data", "__class__": "x"}, "does not define"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "140737"}, "not there"),
        ({"location": MARKER + "0"}, "reserves"),
    ],
)
def test_unsafe_external_data_is_refused(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    path = external_model(outside(tmp_path), **entries)
    with pytest.raises(ModelReadError, match=words) as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_a_file_that_becomes_a_link_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external_model(outside(tmp_path), location="data")

    class Swapped(DataFile):
        def __init__(self, name: str, **options: bool) -> None:
            super().__init__(name, **options)
            Path(name).unlink()
            Path(name).symlink_to("../secret")

    monkeypatch.setattr(external, "DataFile", Swapped)
    with pytest.raises(ModelReadError, match="changed while it was opened"):
        load(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = external_model(outside(tmp_path), location="data")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="data")
    with pytest.raises(ModelReadError, match="twice"):
        load(save(model, path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_type": TensorProto.STRING}, "strings"),
        ({"data_type": 77}, "not known"),
        ({"dims": [-4]}, "negative"),
    ],
)
def test_external_tensors_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = external_model(outside(tmp_path), location="data")
    model = onnx.load(path, load_external_data=False)
    if "dims" in change:
        model.graph.initializer[0].dims[:] = change["dims"]
    else:
        model.graph.initializer[0].data_type = change["data_type"]
    with pytest.raises(ModelReadError, match=words):
        load(save(model, path))


def test_external_data_is_checked_in_every_place(tmp_path: Path) -> None:
    model = everywhere()
    count = len(list(tensors(model)))
    for index in range(count):
        changed = ModelProto()
        changed.CopyFrom(model)
        tensor = list(tensors(changed))[index]
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
        with pytest.raises(ModelReadError, match="outside"):
            load(save(changed, tmp_path / "m.onnx"))
        with pytest.raises(ModelReadError, match="outside"):
            from_proto(changed, tmp_path)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    model = load(external_model(outside(tmp_path), location="within", offset="16"))
    assert model.raw(model.proto.graph.initializer[0]) == bytes(16)


def test_a_linked_model_finds_data_beside_its_target(tmp_path: Path) -> None:
    path = external_model(outside(tmp_path), location="data")
    link = tmp_path / "elsewhere" / "m.onnx"
    link.parent.mkdir()
    link.symlink_to(path)
    with pytest.raises(ModelReadError, match="not there"):
        load(link)
    (link.parent / "data").symlink_to(path.parent / "data")
    assert len(load(link).blobs) == 1
    (link.parent / "data").unlink()
    (link.parent / "data").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelReadError, match="cp -rL"):
        load(link)


def test_a_model_in_memory_needs_a_folder_for_external_data(tmp_path: Path) -> None:
    model = onnx.load(external_model(outside(tmp_path), location="data"), load_external_data=False)
    with pytest.raises(ModelReadError, match="base_dir"):
        from_proto(model)
    assert len(from_proto(model, tmp_path / "model").blobs) == 1
    with pytest.raises(ModelReadError, match="no graph"):
        from_proto(ModelProto())
    with pytest.raises(ModelReadError, match="reserves"):
        from_proto(make_model(name=MARKER))


# What must not happen: writing


def test_the_destination_is_untouched_until_commit(tmp_path: Path) -> None:
    source = save(make_model(weight("w")), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with stage(load(source), out) as staged:
        assert out.read_bytes() == b"old"
        onnx.load(staged.model_path)
    assert out.read_bytes() == b"old"
    assert names_in(tmp_path) == ["in.onnx", "out.onnx"]


def test_a_weight_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    model = load(save(make_model(weight("w")), tmp_path / "in.onnx"))
    scale(model, "w", 1e300)
    with pytest.raises(Unrepresentable):
        stage(model, tmp_path / "out.onnx")
    assert names_in(tmp_path) == ["in.onnx"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, external: bool
) -> None:
    write = save_external if external else save
    model = load(write(make_model(weight("w")), tmp_path / "in.onnx"))
    before = names_in(tmp_path)

    monkeypatch.setattr(os, "pwrite", failing(code))
    monkeypatch.setattr(os, "copy_file_range", failing(code), raising=False)
    with pytest.raises(ModelWriteError, match=os.strerror(code)) as caught:
        stage(model, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == before


def test_a_folder_that_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(save(make_model(weight("w")), tmp_path / "in.onnx"))
    monkeypatch.setattr(staging.tempfile, "mkdtemp", failing(errno.EACCES))
    with pytest.raises(ModelWriteError, match="cannot be written: Permission denied; check space and permissions"):
        stage(model, tmp_path / "out.onnx")


def test_data_that_shrinks_while_it_is_copied(tmp_path: Path) -> None:
    model = load(save_external(make_model(weight("w")), tmp_path / "in.onnx"))
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelReadError, match="became shorter"):
        stage(model, tmp_path / "out.onnx")
    assert names_in(tmp_path) == ["in.onnx", "weights.bin"]


def test_a_reference_outside_of_a_tensor_is_never_written(tmp_path: Path) -> None:
    model = Model(make_model(weight("w"), name=MARKER + "0"), [MemoryBlob(bytes(8))])
    with pytest.raises(AssertionError, match="1 references in the skeleton, 0 found"):
        stage(model, tmp_path / "out.onnx")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("step", range(2))
def test_a_failed_commit_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    model = load(save_external(make_model(weight("w")), tmp_path / "in.onnx"))
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    before = names_in(tmp_path)
    staged = stage(model, out)
    replace, calls = os.replace, []

    def fail(source: str, target: str) -> None:
        if len(calls) == step:
            raise OSError(errno.EACCES, "Permission denied")
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelWriteError, match="Permission denied"):
        staged.commit()
    assert out.read_bytes() == b"old"
    assert names_in(tmp_path) == before


def test_impossible_destinations_are_refused(tmp_path: Path) -> None:
    model = load(save_external(make_model(weight("w")), tmp_path / "in.onnx"))
    os.mkfifo(tmp_path / "pipe")
    before = names_in(tmp_path)
    for destination, words in [
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "absent" / "out.onnx", "create it first"),
        (tmp_path / "weights.bin", "holds the weights"),
        (tmp_path / ("x" * 300), "cannot be written"),
        (tmp_path / "nul\0", "cannot be written"),
    ]:
        with pytest.raises(ModelWriteError, match=words):
            stage(model, destination)
    assert names_in(tmp_path) == before


def test_an_existing_data_file_is_never_overwritten(tmp_path: Path) -> None:
    model = load(save_external(make_model(weight("w")), tmp_path / "in.onnx"))
    stranger = tmp_path / "out.onnx.data"
    stranger.write_bytes(b"somebody else's")
    staged = stage(model, tmp_path / "out.onnx")
    staged.commit()
    assert stranger.read_bytes() == b"somebody else's"
    assert [Path(name).name for name in staged.files] == ["out.onnx.1.data", "out.onnx"]


def test_the_data_of_a_replaced_model_stays_under_its_own_name(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    previous = ""
    for round_number, expected in enumerate(["out.onnx.data", "out.onnx.1.data", "out.onnx.2.data"]):
        source = tmp_path / f"in{round_number}.onnx"
        save_external(make_model(weight("w", seed=round_number)), source, f"{round_number}.bin")
        model = onnx.load(source)
        read = load(source)
        staged = stage(read, out)
        assert [note.split("'")[1] for note in read.notes] == ([] if not round_number else [previous])
        if round_number:
            assert not np.array_equal(value(onnx.load(out), "w"), value(model, "w"))
        staged.commit()
        np.testing.assert_array_equal(value(onnx.load(out), "w"), value(model, "w"))
        assert expected in names_in(tmp_path)
        previous = expected


def test_data_under_a_name_that_bnfold_would_not_give_is_not_mentioned(tmp_path: Path) -> None:
    out = save_external(make_model(weight("w")), tmp_path / "out.onnx", "shared.bin")
    model = load(save(make_model(weight("w", seed=1)), tmp_path / "in.onnx"))
    stage(model, out).commit()
    assert not model.notes
    assert names_in(tmp_path) == ["in.onnx", "out.onnx", "shared.bin"]


def test_data_that_the_input_needs_is_not_removed(tmp_path: Path) -> None:
    out = save_external(make_model(weight("w")), tmp_path / "out.onnx", "out.onnx.data")
    other = tmp_path / "other.onnx"
    other.write_bytes(out.read_bytes())
    stage(load(other), out).commit()
    assert names_in(tmp_path) == ["other.onnx", "out.onnx", "out.onnx.1.data", "out.onnx.data"]
    onnx.load(other)


def test_in_place_with_external_data(tmp_path: Path) -> None:
    original = make_model(weight("w"))
    path = save_external(original, tmp_path / "m.onnx", "m.onnx.data")
    original = onnx.load(path)
    model = load(path)
    scale(model, "w", 2.0)
    stage(model, path).commit()
    assert names_in(tmp_path) == ["m.onnx", "m.onnx.1.data", "m.onnx.data"]
    np.testing.assert_array_equal(value(onnx.load(path), "w"), 2 * value(original, "w"))


@pytest.mark.parametrize("external", [False, True])
def test_permissions_follow_umask_or_the_replaced_file(tmp_path: Path, external: bool) -> None:
    write = save_external if external else save
    model = load(write(make_model(weight("w")), tmp_path / "in.onnx"))
    old = os.umask(0o027)
    try:
        staged = stage(model, tmp_path / "out.onnx")
        staged.commit()
        assert {stat.S_IMODE(Path(name).stat().st_mode) for name in staged.files} == {0o640}
        (tmp_path / "out.onnx").chmod(0o604)
        staged = stage(model, tmp_path / "out.onnx")
        staged.commit()
        assert {stat.S_IMODE(Path(name).stat().st_mode) for name in staged.files} == {0o604}
    finally:
        os.umask(old)


def test_a_link_is_replaced_and_its_target_is_not(tmp_path: Path) -> None:
    source = save(make_model(weight("w")), tmp_path / "in.onnx")
    before = source.read_bytes()
    link = tmp_path / "out.onnx"
    link.symlink_to(source)
    model = load(source)
    scale(model, "w", 2.0)
    stage(model, link).commit()
    assert source.read_bytes() == before
    assert not link.is_symlink()


def test_an_interrupt_from_the_progress_callback_cleans_up(tmp_path: Path) -> None:
    model = load(save(make_model(weight("w")), tmp_path / "in.onnx"))

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(model, tmp_path / "out.onnx", progress=interrupt)
    assert names_in(tmp_path) == ["in.onnx"]


# What must be kept


def round_trip(path: Path, folder: Path) -> None:
    expected = onnx.load(path)
    model = load(path)
    staged = stage(model, folder / "out.onnx")
    staged.commit(flush=False)
    actual = onnx.load(folder / "out.onnx")
    results = [
        expected,
        actual,
        to_proto(model),
        to_proto(from_proto(onnx.load(path, load_external_data=False), path.parent)),
    ]
    if len(staged.files) > 1:  # onnx marks what it has loaded as loaded
        for result in results:
            for tensor in tensors(result):
                tensor.ClearField("data_location")
    assert all(result == expected for result in results)
    for name in staged.files:
        Path(name).unlink()


@pytest.mark.parametrize("limit", [16, files.INLINE_LIMIT])
def test_models_of_the_onnx_package_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(files, "INLINE_LIMIT", limit)
    paths = sorted(ONNX_DATA.rglob("*.onnx"))
    assert paths
    for path in paths:
        round_trip(path, tmp_path)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the corpus of exported models (BNFOLD_CORPUS)")
def test_the_corpus_survives(tmp_path: Path) -> None:
    for path in sorted(CORPUS.glob("*.onnx")):
        round_trip(path, tmp_path)


def test_every_place_is_lifted_and_put_back_byte_for_byte(tmp_path: Path) -> None:
    proto = everywhere()
    path = save(proto, tmp_path / "m.onnx")
    model = load(path)
    assert len(model.blobs) == len(list(tensors(proto))) - 1
    assert model.proto.ByteSize() < 4096
    assert total_bytes(model) > path.stat().st_size
    stage(model, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert to_proto(model) == proto


def test_fields_that_nobody_knows_survive(tmp_path: Path) -> None:
    unknown = b"\xfa\x3f\x03abc"  # field 1023
    proto = make_model(weight("w"))
    graph = ModelProto.FromString(b"\x3a" + files.wire.encode(len(unknown)) + unknown)
    proto.MergeFrom(graph)
    proto.MergeFromString(unknown)
    assert proto.SerializeToString().count(unknown) == 2
    model = load(save(proto, tmp_path / "m.onnx"))
    stage(model, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    in_memory = from_proto(proto)
    assert len(in_memory.blobs) == 1
    assert to_proto(in_memory).SerializeToString(deterministic=True) == (tmp_path / "m.onnx").read_bytes()


def test_from_proto_refers_to_its_argument_and_leaves_it_alone() -> None:
    proto = everywhere()
    before = proto.SerializeToString(deterministic=True)
    model = from_proto(proto)
    assert {type(blob) for blob in model.blobs} == {ProtoBlob}
    assert model.proto.ByteSize() < 4096
    scale(model, "w", 2.0)
    np.testing.assert_array_equal(value(to_proto(model), "w"), 2 * value(proto, "w"))
    assert proto.SerializeToString(deterministic=True) == before


def test_a_model_in_memory_can_be_written(tmp_path: Path) -> None:
    proto = everywhere()
    stage(from_proto(proto), tmp_path / "out.onnx").commit()
    written = tensors(onnx.load(tmp_path / "out.onnx"))
    assert [tensor.raw_data for tensor in written] == [tensor.raw_data for tensor in tensors(proto)]


def test_raw_gives_the_bytes_however_they_are_stored(tmp_path: Path) -> None:
    typed = TensorProto(name="typed", dims=[1], data_type=TensorProto.FLOAT, float_data=[1])
    small = numpy_helper.from_array(np.float32([1]), "small")
    model = load(save(make_model(weight("w"), small, typed), tmp_path / "m.onnx"))
    large, little, fields = model.proto.graph.initializer
    assert bytes(model.raw(large) or b"") == weight("w").raw_data
    assert isinstance(model.blob(large), FileBlob)
    assert model.raw(little) == np.float32([1]).tobytes()
    assert model.blob(little) is None
    assert model.raw(fields) is None


def test_attach_drops_the_data_and_shares_blobs() -> None:
    model = Model(make_model(weight("a"), weight("b"), weight("c")))
    blob, other = MemoryBlob(bytes(9600)), MemoryBlob(bytes(9600))
    model.blobs.append(blob)
    for tensor, data in zip(model.proto.graph.initializer, [blob, other, blob], strict=True):
        model.attach(tensor, data)
    assert model.blobs == [blob, other]
    assert [model.blob(tensor) for tensor in model.proto.graph.initializer] == [blob, other, blob]
    assert not value(to_proto(model), "c").any()


@pytest.mark.parametrize("threads", [1, 3])
def test_scaled_weights_are_written_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(streaming, "_WORTH_THREADS", 0)
    proto = make_model(weight("a", 400, 700), weight("b", seed=1))
    model = load(save(proto, tmp_path / "m.onnx"))
    scale(model, "a", 2.0)
    seen: list[tuple[int, int]] = []
    stage(model, tmp_path / "out.onnx", progress=lambda *x: seen.append(x), threads=threads).commit()
    actual = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(value(actual, "a"), 2 * value(proto, "a"))
    np.testing.assert_array_equal(value(actual, "b"), value(proto, "b"))
    assert seen[-1] == ((tmp_path / "out.onnx").stat().st_size,) * 2


def share_blocks(target: int, request: int, source: int) -> None:
    """What FICLONE does, by copying."""
    os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)


@pytest.mark.parametrize("kernel", ["copies", "has no call", "refuses", "shares blocks", "shares blocks of many files"])
def test_external_data_is_patched_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    if kernel == "has no call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    if kernel == "refuses":
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV), raising=False)
    if kernel.startswith("shares"):
        monkeypatch.setattr(fcntl, "ioctl", share_blocks)
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO), raising=False)
    if kernel.endswith("many files"):
        monkeypatch.setattr("bnfold.datafile._MOST_OPEN_FILES", 0)
    proto = make_model(*(weight(n, seed=i) for i, n in enumerate("abcd")))
    path = save_external(proto, tmp_path / "m.onnx")
    proto = onnx.load(path)
    model = load(path)
    scale(model, "a", 2.0)
    scale(model, "c", 4.0)
    before = {t.name: (model.blob(t)) for t in model.proto.graph.initializer}
    stage(model, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx.data").stat().st_size == (tmp_path / "weights.bin").stat().st_size
    actual = onnx.load(tmp_path / "out.onnx")
    for name, factor in {"a": 2, "b": 1, "c": 4, "d": 1}.items():
        np.testing.assert_array_equal(value(actual, name), factor * value(proto, name))
    again = load(tmp_path / "out.onnx")
    for tensor in again.proto.graph.initializer:
        blob, old = again.blob(tensor), before[tensor.name]
        assert isinstance(blob, FileBlob)
        assert blob.offset == (old if isinstance(old, FileBlob) else old.source).offset  # type: ignore[union-attr]


def test_bytes_that_another_tensor_needs_are_not_patched_over(tmp_path: Path) -> None:
    path = save_external(make_model(weight("a"), weight("b", seed=1)), tmp_path / "m.onnx")
    skeleton = onnx.load(path, load_external_data=False)
    for name, source in (("a2", 0), ("b2", 1), ("b3", 1)):
        copy = skeleton.graph.initializer.add()
        copy.CopyFrom(skeleton.graph.initializer[source])
        copy.name = name
    save(skeleton, path)
    proto = onnx.load(path)
    model = load(path)
    factors = {"a": 1, "a2": 2, "b": 4, "b2": 8, "b3": 16}
    for name, factor in factors.items():
        if factor > 1:
            scale(model, name, factor)
    stage(model, tmp_path / "out.onnx").commit()
    actual = onnx.load(tmp_path / "out.onnx")
    for name, factor in factors.items():
        np.testing.assert_array_equal(value(actual, name), factor * value(proto, name))


def test_several_data_files_or_much_waste_are_packed(tmp_path: Path) -> None:
    proto = make_model(weight("a"), weight("b", seed=1))
    path = save_external(proto, tmp_path / "m.onnx")
    proto = onnx.load(path)
    wasteful = tmp_path / "weights.bin"
    with wasteful.open("ab") as file:
        file.write(bytes(1 << 20))
    model = load(path)
    scale(model, "b", 2.0)
    stage(model, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx.data").stat().st_size == 2 * 9600
    actual = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(value(actual, "a"), value(proto, "a"))
    np.testing.assert_array_equal(value(actual, "b"), 2 * value(proto, "b"))


def test_a_checksum_stays_with_untouched_data_only(tmp_path: Path) -> None:
    path = save_external(make_model(weight("a"), weight("b", seed=1)), tmp_path / "m.onnx")
    skeleton = onnx.load(path, load_external_data=False)
    for tensor in skeleton.graph.initializer:
        tensor.external_data.add(key="checksum", value="0123")
    model = load(save(skeleton, path))
    scale(model, "b", 2.0)
    stage(model, tmp_path / "out.onnx").commit()
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert ["checksum" in {entry.key for entry in tensor.external_data} for tensor in written] == [True, False]


def test_a_model_above_the_limit_gets_a_data_file_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "INLINE_MOST", 10_000)
    proto = make_model(weight("a"), weight("b", seed=1))
    model = load(save(proto, tmp_path / "m.onnx"))
    scale(model, "b", 2.0)
    staged = stage(model, tmp_path / "out.onnx")
    staged.commit()
    assert any("2 GiB" in note for note in model.notes)
    assert [Path(name).name for name in staged.files] == ["out.onnx.data", "out.onnx"]
    actual = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(value(actual, "a"), value(proto, "a"))
    np.testing.assert_array_equal(value(actual, "b"), 2 * value(proto, "b"))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source = save(everywhere(), tmp_path / "m.onnx")
    written = []
    for name in ("one.onnx", "two.onnx"):
        model = load(source)
        scale(model, "w", 3.0)
        stage(model, tmp_path / name).commit()
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_one_file_per_tensor_does_not_run_out_of_descriptors(tmp_path: Path) -> None:
    proto = make_model(*(weight(f"w{i}", 2, 3, seed=i) for i in range(200)))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx")
    before = open_descriptors()
    model = load(tmp_path / "m.onnx")
    if before:
        assert open_descriptors() < before + 100
    stage(model, tmp_path / "out.onnx").commit()
    np.testing.assert_array_equal(value(onnx.load(tmp_path / "out.onnx"), "w199"), value(proto, "w199"))


def test_flushing_and_committing_twice_do_no_harm(tmp_path: Path) -> None:
    model = load(save_external(make_model(weight("w")), tmp_path / "in.onnx"))
    staged = stage(model, tmp_path / "out.onnx")
    staged.commit(flush=True)
    staged.commit()
    staged.discard()
    onnx.load(tmp_path / "out.onnx")
