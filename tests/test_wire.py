"""The walk over the wire format, against protobuf's own parser."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto

from bnfold import wire
from bnfold.wire import MalformedError, TooDeepError, Window


def window(data: bytes, width: int = 1 << 16) -> Window:
    return Window(lambda offset, size: data[offset : offset + size], len(data), width)


def whole(data: bytes, pieces: wire.Pieces) -> bytes:
    parts = [data[p[0] : p[1]] if isinstance(p, tuple) else p for p in pieces]
    assert all(isinstance(part, bytes) for part in parts)
    return b"".join(part for part in parts if isinstance(part, bytes))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x3a\x05\x0a\x03ab", "past the end"),
        (b"\x3a", "middle"),
        (b"\x08", "middle"),
        (b"\x08\x80", "middle"),
        (b"\x08" + b"\xff" * 11, "ten bytes"),
        (b"\x0f\x00", "wire type 7"),
        (b"\x02\x00", "no number"),
        (b"\x0b\x08\x01", "group"),
        (b"\x0c", "group"),
        (b"\x0d\x00\x00", "past the end"),
        (b"\x09\x00\x00", "past the end"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "past the end"),
    ],
)
def test_damaged_data_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        wire.rewrite(window(data), lambda _start, _end: None)


def nested(depth: int) -> ModelProto:
    model = ModelProto()
    graph = model.graph
    for _ in range(depth):
        graph = graph.node.add().attribute.add().g
    graph.name = "innermost"
    return model


def test_nesting_is_limited() -> None:
    wire.rewrite(window(nested(30).SerializeToString()), lambda _start, _end: None)
    data = b"x"
    for _ in range(50):
        for key in (b"\x32", b"\x2a", b"\x0a"):
            data = key + wire.encode(len(data)) + data
    data = b"\x3a" + wire.encode(len(data)) + data
    with pytest.raises(TooDeepError, match="nested more than 100"):
        wire.rewrite(window(data), lambda _start, _end: None)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_walk_or_a_refusal(data: bytes) -> None:
    try:
        pieces = wire.rewrite(window(data, 32), lambda _start, _end: [b"\x08\x01"])
    except MalformedError:
        return
    assert sum(map(wire.length_of, pieces)) == len(whole(data, pieces))


@given(st.integers(0, 2**64 - 1))
def test_numbers_survive(value: int) -> None:
    assert wire.varint(wire.encode(value), 0) == (value, len(wire.encode(value)))


def everywhere() -> ModelProto:
    """Return a model with a tensor in every place that can hold one, named 0, 1, 2, ... in the order of the file."""
    model = ModelProto(ir_version=8, producer_name="p" * 300)

    def fill_attribute(attribute: AttributeProto, depth: int) -> None:
        attribute.name = "a"
        attribute.t.name = "t"
        attribute.tensors.add(name="t")
        attribute.sparse_tensor.values.name = "t"
        attribute.sparse_tensors.add().indices.name = "t"
        if depth:
            fill_graph(attribute.g, depth - 1)
            fill_graph(attribute.graphs.add(), depth - 1)

    def fill_graph(graph: object, depth: int) -> None:
        graph.name = "graph"  # type: ignore[attr-defined]
        fill_attribute(graph.node.add().attribute.add(), depth)  # type: ignore[attr-defined]
        graph.initializer.add(name="t")  # type: ignore[attr-defined]
        graph.sparse_initializer.add().values.name = "t"  # type: ignore[attr-defined]

    fill_graph(model.graph, 1)
    training = model.training_info.add()
    fill_graph(training.initialization, 0)
    fill_graph(training.algorithm, 0)
    function = model.functions.add(name="f")
    fill_attribute(function.node.add().attribute.add(), 0)
    fill_attribute(function.attribute_proto.add(), 0)
    return model


def count_tensors(message: object) -> int:
    """Count by reflection, with no list of places to forget one from."""
    if isinstance(message, TensorProto):
        return 1
    total = 0
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is None:
            continue
        total += sum(map(count_tensors, value)) if hasattr(value, "extend") else count_tensors(value)
    return total


@pytest.mark.parametrize("width", [32, 1 << 16])
def test_every_place_for_a_tensor_is_reached_and_lengths_are_corrected(width: int) -> None:
    model = everywhere()
    data = model.SerializeToString()
    reached = 0

    def rename(start: int, end: int) -> wire.Pieces:
        nonlocal reached
        reached += 1
        return [(start, end), b"\x62" + wire.encode(200) + b"d" * 200]

    pieces = wire.rewrite(window(data, width), rename)
    assert reached == count_tensors(model)
    changed = ModelProto.FromString(whole(data, pieces))

    def strip(message: object) -> None:
        if isinstance(message, TensorProto):
            assert message.doc_string == "d" * 200
            message.ClearField("doc_string")
            return
        for field, value in message.ListFields():  # type: ignore[attr-defined]
            if field.message_type is not None:
                for item in value if hasattr(value, "extend") else [value]:
                    strip(item)

    strip(changed)
    assert changed == model


def test_short_messages_are_skipped_unread() -> None:
    model = everywhere()
    data = model.SerializeToString()
    pieces = wire.rewrite(window(data), lambda _start, _end: [b""], longer_than=10_000)
    assert pieces == [(0, len(data))]


def test_groups_are_passed_over() -> None:
    inner = b"\x42\x01t"  # name of a tensor
    group = b"\xc3\x3e\x08\x01\xcb\x3e\x10\x02\xcc\x3e\x2a\x03" + inner + b"\xc4\x3e"
    graph = group + b"\x2a\x03" + inner
    data = b"\x3a" + wire.encode(len(graph)) + graph
    seen = []
    wire.rewrite(window(data), lambda start, end: seen.append((start, end)))
    assert [data[start:end] for start, end in seen] == [inner]
    assert seen[0][1] == len(data)
