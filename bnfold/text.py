"""Whether all text in a model is UTF-8: protobuf does not check that for ONNX and would hand out ``bytes``."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import ModelProto

__all__ = ["all_utf8"]


@cache
def _strict_model() -> Any:
    """Return a message class like ``ModelProto`` that checks its text, or None where protobuf is too old for that.

    ``onnx.proto`` is written in proto2, which does not check; edition 2023 of the same schema does.
    """
    from google.protobuf import (  # type: ignore[import-untyped,unused-ignore]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    if not hasattr(descriptor_pb2, "EDITION_2023"):
        return None
    schema = descriptor_pb2.FileDescriptorProto()
    ModelProto.DESCRIPTOR.file.CopyToProto(schema)
    schema.name, schema.syntax, schema.edition = "bnfold/strict.proto", "editions", descriptor_pb2.EDITION_2023
    messages = list(schema.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            field.options.ClearField("packed")  # editions say this in another way
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(ModelProto.DESCRIPTOR.full_name))


def all_utf8(serialised: bytes) -> bool:
    """Return whether all text in a serialised ``ModelProto``, which parses, is UTF-8."""
    strict = _strict_model()
    if strict is None:
        return True
    try:
        strict.FromString(serialised)
    except DecodeError:
        return False
    return True
