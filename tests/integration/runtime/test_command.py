"""`aiflow serve` as a process: what it prints, how it stops, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from contract.registrar.kit import AtConsul, until_seen
from fixtures.consul import Agent
from integration.runtime import echo
from integration.runtime.poll import gone, until
from integration.runtime.registry import serving_registry

TESTS = Path(__file__).parents[2]
SCRIPT = """
from aiflow_servers.runtime.command import serve

if __name__ == "__main__":
    serve(prog_name="aiflow serve")
"""
ENTRY_POINTS = """
[aiflow.servers]
echo = integration.runtime.echo:SERVER
needy = integration.runtime.needs_an_extra:SERVER
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Starts `aiflow serve` where a distribution with two servers of its own is installed."""
    installed = tmp_path / "echo_server-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-server\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "serve.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{TESTS}", "PYTHONUNBUFFERED": "1"}
    environment.pop("AIFLOW_ROUTER", None)
    environment.pop("AIFLOW_API_KEY", None)
    environment.pop("AIFLOW_DISCOVERY", None)

    @asynccontextmanager
    async def started(*arguments: str, **variables: str) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(tmp_path / "serve.py"),
            *arguments,
            env=environment | variables,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return started


async def listening(process: Process) -> dict[str, str]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 20)
    ready: dict[str, str] = json.loads(line)
    return ready


async def ended(process: Process) -> tuple[int | None, str]:
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, stderr.decode()


def family(process: Process) -> list[int]:
    """Every process that it has started."""
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


async def test_it_says_where_it_listens_registers_and_leaves(start: Callable[..., Any]) -> None:
    async with (
        serving_registry() as registry,
        start("echo", "--workers", "1", "--zone", "z", AIFLOW_ROUTER=registry.address,
              AIFLOW_API_KEY="k-7") as process,
    ):  # fmt: skip
        ready = await listening(process)
        assert ready["event"] == "listening"
        assert ready["name"] == "echo"
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            call: Any = channel.unary_unary(f"/{echo.SERVICE}/Echo")
            assert await call(b"hello") == b"hello"
        await until(lambda: registry.leases)
        assert registry.keys == {"Bearer k-7"}
        assert registry.endpoints[0].address == ready["grpc"]
        assert registry.endpoints[0].version == "1.0", "the distribution's"
        process.send_signal(signal.SIGTERM)
        code, log = await ended(process)
        assert code == 0
        assert not registry.leases
    assert "k-7" not in log
    assert "Traceback" not in log
    assert all(json.loads(line) for line in log.splitlines())


@pytest.mark.parametrize("to_group", [False, True], ids=["it alone", "its whole process group"])
async def test_sigterm_under_load_fails_no_call(start: Callable[..., Any], to_group: bool) -> None:
    async with (
        serving_registry() as registry,
        start("echo", "--workers", "2", "--router", registry.address) as process,
    ):
        ready = await listening(process)
        await until(lambda: registry.leases)
        outcomes: list[bytes] = []
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            wait: Any = channel.unary_unary(f"/{echo.SERVICE}/Wait")

            async def as_the_router_sends() -> None:
                while not registry.draining:  # nothing new from then on
                    outcomes.append(await wait(b"0.02"))

            callers = [asyncio.create_task(as_the_router_sends()) for _ in range(8)]
            await until(lambda: len(outcomes) > 20)
            if to_group:
                os.killpg(process.pid, signal.SIGTERM)
            else:
                process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)  # raises what any call raised
        code, log = await ended(process)
    assert code == 0
    assert "Traceback" not in log
    assert '"code": "UNAVAILABLE"' not in log


async def test_ctrl_c_is_clean_and_leaves_nothing_running(start: Callable[..., Any]) -> None:
    async with start("echo", "--standalone", "--workers", "2") as process:
        await listening(process)
        started = family(process)
        assert len(started) >= 3
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        code, log = await ended(process)
        assert code == 0
        assert "Traceback" not in log
        await until(lambda: all(gone(pid) for pid in started))


async def test_a_second_signal_ends_it_at_once(start: Callable[..., Any]) -> None:
    async with start("echo", "--standalone", "--workers", "1") as process:
        ready = await listening(process)
        started = family(process)
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            compute: Any = channel.unary_unary(f"/{echo.SERVICE}/Compute")
            call = asyncio.ensure_future(compute(b"60"))
            await until(lambda: any(psutil.Process(p).cpu_percent(0.05) > 20 for p in started))
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while b"draining" not in await asyncio.wait_for(process.stderr.readline(), 20):
                pass
            assert not call.done()
            process.send_signal(signal.SIGTERM)
            assert await until(lambda: gone(process.pid)) < 5
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        await until(lambda: all(gone(pid) for pid in started))


async def test_kill_9_leaves_no_process_behind_not_even_one_that_computes(
    start: Callable[..., Any],
) -> None:
    async with start("echo", "--standalone", "--workers", "2") as process:
        ready = await listening(process)
        started = family(process)
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            compute: Any = channel.unary_unary(f"/{echo.SERVICE}/Compute")
            call = asyncio.ensure_future(compute(b"60"))
            await until(lambda: any(psutil.Process(p).cpu_percent(0.05) > 20 for p in started))
            process.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        assert await until(lambda: all(gone(pid) for pid in started)) < 2


async def test_a_signal_before_it_is_up_ends_it(start: Callable[..., Any]) -> None:
    async with start("echo", "--standalone") as process:
        assert process.stderr is not None
        await asyncio.wait_for(process.stderr.readline(), 20)  # "starting"
        process.send_signal(signal.SIGTERM)
        code, log = await ended(process)
    assert code in (0, -signal.SIGTERM)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        pytest.param(["ekho"], 2, "did you mean echo?", id="a misspelt name gets the nearest"),
        pytest.param(["qqqq"], 2, "Installed: echo, ", id="an unknown name gets the list"),
        pytest.param(
            ["needy"], 1, "needs 'no_such_library', which is not installed: pip install "
            "'echo-server'", id="a missing library names what to install",
        ),
        pytest.param(["echo", "--listen", "7700"], 1, "write HOST:PORT", id="a bad address"),
        pytest.param(
            ["echo", "--standalone", "--http", "256.1.1.1:1"], 1, "cannot listen on 256.1.1.1:1",
            id="an address that is nobody's",
        ),
        pytest.param(
            ["echo", "--listen", "0.0.0.0:0", "--router", "no-such-host.invalid:1"], 1,
            "say --advertise HOST:", id="no address to advertise",
        ),
        pytest.param(["echo", "--workers", "0"], 2, "--workers", id="no workers"),
        pytest.param(
            ["echo", "--discovery", "zookeeper"], 2, "'embedded', 'consul'", id="another registry",
        ),
        pytest.param(
            ["echo", "--consul", "http://127.0.0.1:8500"], 2, "add --discovery consul",
            id="an agent that nobody asks",
        ),
        pytest.param(
            ["echo", "--discovery", "consul", "--router", "mesh:7600"], 2,
            "leave --router out, or say --discovery embedded", id="two places to register",
        ),
        pytest.param(
            ["echo", "--discovery", "consul", "--standalone"], 2, "leave out one of them",
            id="a place to register, and none",
        ),
        pytest.param(
            ["echo", "--discovery", "consul", "--consul", "127.0.0.1:8500"], 2,
            "must begin with http://", id="an agent that is no URL",
        ),
        pytest.param(
            ["echo", "--discovery", "consul", "--consul-token-file", "/no/such"], 2,
            "--consul-token-file /no/such cannot be read: No such file", id="no token file",
        ),
        pytest.param(
            ["echo", "--discovery", "consul", "--listen", "0.0.0.0:0"], 1,
            "the routers that ask Consul can reach is not known: say --advertise HOST:",
            id="every interface, and Consul to tell",
        ),
    ],
)  # fmt: skip
async def test_mistakes_are_answered_with_what_to_do(
    start: Callable[..., Any], arguments: list[str], exit_code: int, message: str
) -> None:
    async with start(*arguments) as process:
        code, log = await ended(process)
    assert (code, message in log) == (exit_code, True), log
    assert "Traceback" not in log


@pytest.mark.parametrize("option", ["--listen", "--http"])
async def test_a_port_in_use_is_one_line_and_exit_1(start: Callable[..., Any], option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with start("echo", "--standalone", option, address) as process:
            code, log = await ended(process)
    assert code == 1
    lines = [line for line in log.splitlines() if '"event": "starting"' not in line]
    assert len(lines) == 1, log
    assert lines[0] == f"Error: cannot listen on {address}: Address already in use"


async def test_listening_everywhere_advertises_what_the_router_can_reach(
    start: Callable[..., Any],
) -> None:
    async with (
        serving_registry() as registry,
        start("echo", "--workers", "1", "--listen", "0.0.0.0:0", "--router", registry.address)
        as process,
    ):  # fmt: skip
        ready = await listening(process)
        await until(lambda: registry.leases)
        port = ready["grpc"].rpartition(":")[2]
        assert registry.endpoints[0].address == f"127.0.0.1:{port}"


async def test_at_consul_it_comes_drains_and_leaves_and_is_critical_when_killed(
    start: Callable[..., Any], consul: Agent
) -> None:
    registry = AtConsul(consul)
    chosen = {"AIFLOW_DISCOVERY": "consul", "AIFLOW_CONSUL": consul.address, "AIFLOW_ROUTER": "r:1"}
    arguments = ("echo", "--workers", "1", "--zone", "z", "--grace", "1.5")
    async with start(*arguments, **chosen) as process:
        ready = await listening(process)
        await until_seen(registry, "echo", {ready["grpc"]: "READY"})
        seen = (await registry.seen("echo"))[ready["grpc"]]
        assert (seen.zone, seen.version, seen.device) == ("z", "1.0", "cpu")
        process.send_signal(signal.SIGTERM)
        await until_seen(registry, "echo", {ready["grpc"]: "DRAINING"}, within_s=2)
        code, log = await ended(process)
        assert (code, await registry.seen("echo")) == (0, {})
        assert "Traceback" not in log
    async with start(*arguments, "--listen", ready["grpc"], **chosen) as process:
        await listening(process)
        await until_seen(registry, "echo", {ready["grpc"]: "READY"})
        process.kill()
        await until_seen(registry, "echo", {ready["grpc"]: "CRITICAL"}, within_s=4)
    async with start(*arguments, "--listen", ready["grpc"], **chosen) as process:
        await listening(process)
        await until_seen(registry, "echo", {ready["grpc"]: "READY"}, within_s=1)


async def test_help_teaches(start: Callable[..., Any]) -> None:
    async with start("--help") as process:
        out, _ = await process.communicate()
    assert process.returncode == 0
    text = out.decode()
    for taught in (
        "AIFLOW_ROUTER",
        "AIFLOW_CONSUL",
        "--discovery",
        "--advertise",
        "aiflow serve imaging",
        "echo",
        "Ctrl-C",
    ):
        assert taught in text
