"""Whether all text in a model is UTF-8: protobuf does not check that for ONNX and would hand out ``bytes``."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import ModelProto

__all__ = ["all_utf8"]


@cache
def _strict_model() -> Any:
    """Return a message class like ``ModelProto`` that checks its text.

    ``onnx.proto`` is written in proto2, which does not check; proto3 with the same schema does.
    """
    from google.protobuf import (  # type: ignore[import-untyped,unused-ignore]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    schema = descriptor_pb2.FileDescriptorProto()
    ModelProto.DESCRIPTOR.file.CopyToProto(schema)
    schema.name, schema.syntax = "bnfold/strict.proto", "proto3"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(ModelProto.DESCRIPTOR.full_name))


def all_utf8(serialised: bytes) -> bool:
    """Return whether all text in a serialised ``ModelProto``, which parses, is UTF-8."""
    try:
        _strict_model().FromString(serialised)
    except DecodeError:
        return False
    return True
