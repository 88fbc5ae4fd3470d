"""The methods of a service as gRPC takes them, read from the interface itself.

The generated registration would do, but for requests that are no messages: gRPC answers those with UNKNOWN and writes a
traceback for each. Here they reach the one wrapper of `rpc` as None and are refused there like any other request.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from cri_shim.pb import api_pb2, health_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from cri_shim.server.health import Health
    from cri_shim.server.service import ImageService, RuntimeService

_INTERFACES: Any = (api_pb2, health_pb2)


def methods_of(service: ImageService | RuntimeService | Health) -> grpc.GenericRpcHandler:
    """Return the handler of *service*, whose class has the name of the service that it implements."""
    name = type(service).__name__
    interface = next(one for one in _INTERFACES if name in one.DESCRIPTOR.services_by_name)
    described = interface.DESCRIPTOR.services_by_name[name]
    handlers = {method.name: _handler(interface, method, getattr(service, method.name)) for method in described.methods}
    return grpc.method_handlers_generic_handler(described.full_name, handlers)


def _handler(interface: Any, method: MethodDescriptor, answer: Any) -> grpc.RpcMethodHandler[Any, Any]:
    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    request, response = (getattr(interface, kind.name) for kind in (method.input_type, method.output_type))
    return make(answer, partial(_read, request), partial(_written, response))


def _written(kind: type[Message], answer: Message | bytes) -> bytes:
    """Lists come in the form that travels already."""
    return answer if isinstance(answer, bytes) else kind.SerializeToString(answer)


def _read(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None
