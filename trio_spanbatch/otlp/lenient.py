"""A server's protobuf messages, read although a text in them is no UTF-8.

protobuf refuses a whole message for one byte in a ``string`` that is no UTF-8, such as that of a text that was cut
off in the middle of a character: the number of rejected spans beside it would be lost, and they would count as
delivered. A ``bytes`` field is the same on the wire and holds anything. So these are the messages of
``trace_service.proto`` and ``google/rpc/status.proto``, as far as they are read, with ``bytes`` in place of ``string``.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

__all__ = ["PartialSuccess", "Status", "TraceServiceResponse"]

_PACKAGE = "trio_spanbatch.lenient"


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="trio_spanbatch/lenient.proto", package=_PACKAGE, syntax="proto3")
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    partial = file.message_type.add(name="PartialSuccess")
    partial.field.add(name="rejected_spans", number=1, type=FieldDescriptorProto.TYPE_INT64, label=optional)
    partial.field.add(name="error_message", number=2, type=FieldDescriptorProto.TYPE_BYTES, label=optional)
    response = file.message_type.add(name="TraceServiceResponse")
    response.field.add(
        name="partial_success",
        number=1,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.PartialSuccess",
        label=optional,
    )
    # google.rpc.Status, which the specification has for errors; its details are not looked into.
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=FieldDescriptorProto.TYPE_INT32, label=optional)
    status.field.add(name="message", number=2, type=FieldDescriptorProto.TYPE_BYTES, label=optional)
    repeated = FieldDescriptorProto.LABEL_REPEATED
    status.field.add(name="details", number=3, type=FieldDescriptorProto.TYPE_BYTES, label=repeated)
    return file


# A pool of their own: the names of the default one are everybody's.
_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())

# Classes without static types, as they are made here.
Status: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.Status"))
PartialSuccess: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.PartialSuccess"))
TraceServiceResponse: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName(f"{_PACKAGE}.TraceServiceResponse")
)
