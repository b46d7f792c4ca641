"""Server reflection, `grpc.reflection.v1alpha` and `v1`: the same messages and one servicer under both names.

grpcio-reflection has v1alpha alone, and newer clients ask v1 first. Both have the same bytes on the wire.
"""

from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

V1ALPHA = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"
FILE = "grpc/reflection/v1/reflection.proto"


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Have `server` list and describe these services, by their full names, and reflection itself."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer([*services, V1ALPHA, V1])  # type: ignore[attr-defined]  # no stub has it

    async def answer_v1(requests: AsyncIterator[Message], context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        async for response in servicer.ServerReflectionInfo(_as_v1alpha(requests), context):
            yield response

    for name, behavior in ((V1ALPHA, servicer.ServerReflectionInfo), (V1, answer_v1)):
        handler = grpc.stream_stream_rpc_method_handler(
            behavior,
            request_deserializer=pb.ServerReflectionRequest.FromString,
            response_serializer=pb.ServerReflectionResponse.SerializeToString,
        )
        method = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((method,))


async def _as_v1alpha(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    """The same requests, of the class that the servicer takes: they were decoded by the name of their method."""
    async for request in requests:
        yield pb.ServerReflectionRequest.FromString(request.SerializeToString())


def _describe_v1() -> None:
    """Add v1's descriptors to the pool, from v1alpha's, so that a client can have the service described."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileContainingSymbol(V1)
    except KeyError:
        v1alpha = FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(v1alpha)
        text = text_format.MessageToString(v1alpha).replace("reflection.v1alpha", "reflection.v1")
        v1 = text_format.Parse(text, FileDescriptorProto())
        v1.name = FILE
        pool.AddSerializedFile(v1.SerializeToString())
