"""Whether a Consul is there, and what is said where it is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fixtures.consul import Agent, StartAgent

from aiflow_sdk.command import consul_agent, mesh
from aiflow_sdk.command.processes import StartError, Supervisor


@contextmanager
def another_server(status: int) -> Iterator[str]:
    """URL of something that is not Consul."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_agent_is_known_by_its_answer(consul: Agent, start_consul: StartAgent) -> None:
    assert consul_agent.answers(consul.address)
    assert consul_agent.answers(start_consul(acl=True).address)


def test_nobody_there_is_no_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert not consul_agent.answers(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("status", [200, 404])
def test_what_is_not_consul_is_told_apart(status: int) -> None:
    with (
        another_server(status) as url,
        pytest.raises(consul_agent.NoConsulError, match="is not Consul"),
    ):
        consul_agent.answers(url)


def test_an_agent_of_another_machine_is_not_started_here() -> None:
    with (
        Supervisor(say=lambda *_: None) as supervisor,
        # Reserved for documentation.
        pytest.raises(StartError, match=r"no Consul answers at http://192\.0\.2\.1:8500"),
    ):
        mesh._agent(supervisor, lambda *_: None, "http://192.0.2.1:8500")


def test_without_a_consul_it_is_said_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(consul_agent, "_DEPLOY", tmp_path / "none")
    with pytest.raises(consul_agent.NoConsulError, match="install it from"):
        consul_agent.binary()
