"""`aiflow up --discovery consul`: router, server and a real agent, registered, called, stopped."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import psutil
import pytest
from PIL import Image

from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import Client

pytestmark = pytest.mark.timeout(180)

UP = (
    *("up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--without", "triton"),
    *("--without", "geometry", "--discovery", "consul", "--consul", "http://127.0.0.1:0"),
)


def picture() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "PNG")
    return encoded.getvalue()


@contextmanager
def up() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and what it said when it was ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiflow_sdk.command", *UP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        log: list[str] = []
        reading = threading.Thread(target=_keep, args=(process.stderr, log))
        reading.start()
        children: list[psutil.Process] = []
        try:
            welcome = ""
            while "Ctrl-C" not in welcome:
                line = process.stdout.readline()
                assert line, "".join(log)
                welcome += line
            children = psutil.Process(process.pid).children(recursive=True)
            assert any(child.name() == "consul" for child in children)
            yield process, welcome
            assert psutil.wait_procs(children, timeout=20)[1] == [], "left running"
        finally:
            process.kill()
            for child in children:
                if child.is_running():
                    child.kill()
            reading.join()


def _keep(stream: IO[str], log: list[str]) -> None:
    log.extend(stream)


def test_everything_is_registered_at_consul_is_called_and_stops_with_one_signal() -> None:
    with up() as (process, welcome):
        router = re.search(r"gRPC +(\S+)", welcome)
        assert router is not None
        assert re.search(r"Consul +http://127\.0\.0\.1:\d+/ui", welcome)
        with Client(router[1]) as client:
            (imaging,) = client.endpoints()
            assert (imaging.backend, imaging.state, imaging.device) == ("imaging", "READY", "cpu")
            assert imaging.version
            assert imaging.expires_in_s == 0
            request = imaging_pb2.ComposeContactSheetRequest()
            request.tiles.add().image.data = picture()
            stub = imaging_pb2_grpc.ImagingServiceStub(client.channel())
            reply = client.call(stub.ComposeContactSheet, request)
            assert reply.message.image.data
            assert reply.served_by.endswith(f"@{imaging.address}")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_no_call_fails_when_the_agent_is_killed_and_comes_back_without_a_memory() -> None:
    with up() as (process, welcome):
        router, consul = (
            found[1]
            for found in (
                re.search(r"gRPC +(\S+)", welcome),
                re.search(r"Consul +(http://127\.0\.0\.1:\d+)/ui", welcome),
            )
            if found is not None
        )
        children = psutil.Process(process.pid).children(recursive=True)
        (agent,) = [child for child in children if child.name() == "consul"]
        request = imaging_pb2.ComposeContactSheetRequest()
        request.tiles.add().image.data = picture()
        with Client(router) as client:
            stub = imaging_pb2_grpc.ImagingServiceStub(client.channel())
            agent.kill()
            agent.wait()
            came_back_s = 0.0
            ends_s = time.monotonic() + 60
            # On for a while after it is back: what it has lost is to be missed by nobody.
            while not came_back_s or time.monotonic() < came_back_s + 2:
                assert time.monotonic() < ends_s, "nothing is registered there again"
                assert client.call(stub.ComposeContactSheet, request).message.image.data
                if not came_back_s and takes_calls(consul, "imaging"):
                    came_back_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def takes_calls(consul: str, backend: str) -> bool:
    """Whether the agent, if there is one, tells an instance that passes its checks."""
    url = f"{consul}/v1/health/service/{backend}?passing"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(json.load(answer))
    except OSError:
        return False
