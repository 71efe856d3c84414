"""Kinds of methods as descriptors give them, and what holds where endpoints disagree."""

from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions

from aiflow.imaging.v1 import imaging_pb2
from aiflow.registry.v1 import registry_pb2
from aiflow_router.forwarding.kinds import Method, agreed, described


def test_methods_are_described_by_their_proto() -> None:
    file = FileDescriptorProto(name="a.proto", package="a")
    service = file.service.add(name="S")
    service.method.add(name="One")
    service.method.add(name="Up", client_streaming=True)
    service.method.add(name="Down", server_streaming=True)
    again = service.method.add(name="Again")
    again.options.idempotency_level = MethodOptions.IDEMPOTENT
    other = FileDescriptorProto(name="b.proto", package="a.S").SerializeToString()
    files = (other, file.SerializeToString())
    assert described("a.S", files) == (
        Method(name="/a.S/One", unary=True, repeatable=False),
        Method(name="/a.S/Up", unary=False, repeatable=False),
        Method(name="/a.S/Down", unary=False, repeatable=False),
        Method(name="/a.S/Again", unary=True, repeatable=True),
    )
    assert described("a.T", files) == ()
    assert described("S", files) == ()
    assert described("S", (FileDescriptorProto(service=[service]).SerializeToString(),))


def test_what_endpoints_do_not_agree_on_is_not_said() -> None:
    def methods(*, unary: bool, repeatable: bool) -> tuple[Method, ...]:
        return (Method(name="/a.S/M", unary=unary, repeatable=repeatable),)

    new = (
        *methods(unary=True, repeatable=True),
        Method(name="/a.S/New", unary=True, repeatable=True),
    )
    assert agreed([new, methods(unary=True, repeatable=False)]) == {
        "/a.S/M": Method(name="/a.S/M", unary=True, repeatable=False),
        "/a.S/New": new[1],
    }
    assert not agreed([new, methods(unary=False, repeatable=True)])["/a.S/M"].unary
    assert agreed([]) == {}


def test_pictures_and_reading_the_catalog_may_be_repeated() -> None:
    for file in (imaging_pb2, registry_pb2):
        raw = file.DESCRIPTOR.serialized_pb
        (service,) = file.DESCRIPTOR.services_by_name.values()
        for method in described(service.full_name, (raw,)):
            assert method.unary != method.name.endswith("/WatchEndpoints")
            changing = ("/Register", "/Renew", "/Deregister")
            assert method.repeatable != method.name.endswith(changing)
