"""Each way of being wrong at the door, sent by hand over HTTP/2: how it is answered."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from integration.router.kit import infer
from integration.router.router_process import RouterProcess, backend_process, router_process
from integration.router.wire import INFER, Wire, framed, head, wire

M = infer("m")
GOOD = framed(M)
ECHO = "/a.Echo/Echo"
HEALTH = "/grpc.health.v1.Health/Check"
NO_REQUEST = "without a whole request message"
FAULTS = ("the router failed", "Traceback", "traceback")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    folder = tmp_path_factory.mktemp("router")
    with backend_process() as address, router_process(folder, address) as running:
        yield running


def row(name: str, told: str, headers: Any, body: bytes = GOOD, says: str = "") -> Any:
    return pytest.param(headers, body, told, says, id=name)


UNARY = [
    row("a good call is answered", "grpc 0", head()),
    row("a message more than the one is not looked at", "grpc 0", head(), GOOD + GOOD),
    row("no message", "grpc 3", head(), b"", NO_REQUEST),
    row("half a length prefix", "grpc 3", head(), b"\0\0", NO_REQUEST),
    row("a prefix that promises more", "grpc 3", head(), framed(M, length=len(M) + 9), NO_REQUEST),
    row("a prefix that promises 4 GiB", "grpc 3", head(), framed(M, length=2**32 - 1), NO_REQUEST),
    row("a prefix that promises less", "grpc 3", head(), framed(M, length=len(M) - 1), "cut short"),
    row("a prefix that promises nothing", "grpc 3", head(), framed(M, length=0), "no model"),
    row("a flag that nobody knows", "grpc 3", head(), framed(M, flag=2)),
    row("a compressed flag without an encoding", "grpc 0", head(), framed(M, flag=1)),
    row(
        "gzip that is no gzip",
        "grpc 13",
        head(grpc_encoding="gzip"),
        framed(M, flag=1),
        "decompres",
    ),
    row(
        "gzip that is cut short",
        "grpc 13",
        head(grpc_encoding="gzip"),
        framed(gzip.compress(M)[:-6], flag=1),
        "decompres",
    ),
    row(
        "deflate",
        "grpc 0",
        head(grpc_encoding="deflate"),
        framed(zlib.compress(M), flag=1),
    ),
    row("an encoding that nobody knows", "reset INTERNAL_ERROR", head(grpc_encoding="zstd")),
    row("JSON by its content type", "grpc 0", head(content_type="application/json")),
    row("gRPC-Web by its content type", "grpc 0", head(content_type="application/grpc-web")),
    row("no content type", "grpc 0", head(content_type=None)),
    row("GET", "grpc 2", head(method="GET"), b"", "Bad method"),
    row("OPTIONS", "reset INTERNAL_ERROR", head(method="OPTIONS"), b""),
    row("no te", "grpc 2", head(te=None), says="Missing :te"),
    row("a te that is not trailers", "reset INTERNAL_ERROR", head(te="gzip")),
    row("no path", "grpc 2", [pair for pair in head() if pair[0] != ":path"], says="Missing :path"),
    row("no authority", "grpc 2", head(authority=None), says="Missing :authority"),
    row("a deadline that is no number", "reset INTERNAL_ERROR", head(grpc_timeout="abc")),
    row("a deadline below zero", "reset INTERNAL_ERROR", head(grpc_timeout="-1S")),
    row("a deadline without a unit", "reset INTERNAL_ERROR", head(grpc_timeout="1")),
    row("a deadline of now", "grpc 4", head(grpc_timeout="0n")),
    row("a deadline in 11,000 years", "grpc 0", head(grpc_timeout="99999999H")),
    row("metadata without a name", "reset INTERNAL_ERROR", [*head(), ("", "a")]),
    row("metadata with a capital letter", "reset INTERNAL_ERROR", [*head(), ("X-A", "a")]),
    row("metadata with a space in its name", "reset INTERNAL_ERROR", [*head(), ("x a", "a")]),
    row("metadata without a value", "grpc 0", head(x_a="")),
    row("metadata in UTF-8", "grpc 3", head(x_a=b"caf\xc3\xa9"), says='"x-a" is not printable'),
    row("metadata in Latin-1", "grpc 3", head(x_a=b"caf\xe9"), says='"x-a" is not printable'),
    row("metadata with a control character", "grpc 3", head(x_a=b"\x01"), says='"x-a"'),
    row("a trace context in Latin-1", "grpc 3", head(traceparent=b"\xe9"), says='"traceparent"'),
    row("a key in Latin-1", "grpc 16", head(x_api_key=b"\xe9"), says="not known"),
    row("binary metadata that is not base64", "reset INTERNAL_ERROR", head(x_bin="!!!")),
    row("7 KiB of metadata", "grpc 0", head(x_a="a" * 7_000)),
    row("17 KiB of metadata", "grpc 8", head(x_a="a" * 17_000), says="hard limit"),
    row("500 headers", "grpc 8", [*head(), *((f"x-{n}", "a") for n in range(500))]),
    row("5,000 headers", "grpc 8", [*head(), *((f"x-{n}", "a") for n in range(5000))]),
]

PATHS = [
    row("a path without a slash", "grpc 12", head("x")),
    row("an empty path", "grpc 12", head("")),
    row("a path of slashes", "grpc 12", head("////")),
    row("a path of 10 KB", "grpc 12", head("/" + "a" * 10_000 + "/x")),
    row("a path that is not UTF-8", "grpc 2", head(b"/\xff/x"), says="UnicodeDecodeError"),
    row("a method of control characters", "grpc 12", head(b"/a.Echo/\x00\r\n")),
    row("a health check that cannot be decoded", "grpc 3", head(HEALTH), framed(b"\x0a\xff")),
    row("a health check without a request", "grpc 3", head(HEALTH), b""),
    row("a method that grpc.health.v1 lacks", "grpc 12", head("/grpc.health.v1.Health/X")),
]

STREAMS = [
    row("a stream without a message", "grpc 0", head(ECHO), b""),
    row("a stream whose last message is cut short", "grpc 0", head(ECHO), GOOD + GOOD[:-1]),
    row("a stream with a deadline in 11,000 years", "grpc 0", head(ECHO, grpc_timeout="99999999H")),
    row("a stream with metadata in UTF-8", "grpc 3", head(ECHO, x_a=b"caf\xc3\xa9"), says='"x-a"'),
    row("a stream with metadata without a name", "reset INTERNAL_ERROR", [*head(ECHO), ("", "a")]),
    row("a stream of bad gzip", "grpc 13", head(ECHO, grpc_encoding="gzip"), framed(M, flag=1)),
]


@pytest.mark.parametrize(("headers", "body", "told", "says"), [*UNARY, *PATHS, *STREAMS])
async def test_what_is_wrong_gets_its_status(
    router: RouterProcess, headers: Any, body: bytes, told: str, says: str
) -> None:
    before = len(router.log())
    async with wire(router.address) as connection:
        answer = await connection.ask(headers, body)
        assert answer.told == told, answer.message
        assert says in answer.message
        if answer.reset is None:
            assert answer.headers[":status"] == "200"
            assert answer.headers["content-type"] == "application/grpc"
        if answer.reset is None:
            await still_works(connection)
    async with wire(router.address) as connection:
        await still_works(connection)
    log = router.log()[before:]
    assert not [fault for fault in FAULTS if fault in log], log
    await router.comes_to_rest()


async def still_works(connection: Wire) -> None:
    """What one stream does wrong is no matter of the connection."""
    assert (await connection.ask(head(INFER), GOOD)).told == "grpc 0"
