"""A Consul agent of the mesh's own, for one machine: found, started, stopped with whoever asked.

`python -m aiflow_sdk.command.consul_agent --http 127.0.0.1:8500` says in a line of JSON when it has
a leader, as every part of the mesh does. Its state is in memory: a restart empties it, and the
servers register again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

from aiflow_sdk.command import tied

_DEPLOY = Path(__file__).parents[3] / "deploy" / "consul.sh"
_POLL_S = 0.05
_ASK_S = 2.0
_READY_S = 30.0
_STOP_S = 10.0


class NoConsulError(Exception):
    """There is no Consul to be had, or what listens there is none; the message says what to do."""


def binary() -> str:
    """Path of the agent; in a checkout it is fetched where there is none. Raises NoConsulError."""
    if (found := shutil.which("consul")) is not None:
        return found
    if not _DEPLOY.is_file():
        raise NoConsulError(
            "no `consul` is on PATH: install it from https://developer.hashicorp.com/consul/install"
            ", or name an agent that runs with --consul URL"
        )
    done = subprocess.run([str(_DEPLOY)], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - the project's own script
    if done.returncode != 0:
        raise NoConsulError("Consul could not be fetched; the lines above say why")
    return done.stdout.strip()


def answers(url: str) -> bool:
    """Whether an agent is at `url`. Raises NoConsulError where something else is."""
    try:
        _asked(f"{url}/v1/status/leader")
    except urllib.error.HTTPError as error:
        # One that has no leader yet, or asks for a token, is one nevertheless.
        if "X-Consul-Index" in error.headers or error.code in (403, 500):
            return True
        raise _not_consul(url, f"it answers {error.code}") from error
    except ValueError as error:
        raise _not_consul(url, "its answer is no JSON") from error
    except OSError:
        return False
    return True


def _asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_ASK_S) as answer:  # noqa: S310 - http or https only
        return json.loads(answer.read())


def _not_consul(url: str, why: str) -> NoConsulError:
    return NoConsulError(
        f"what listens at {url} is not Consul ({why}): name another address with --consul"
    )


def run(host: str, port: int) -> int:
    """Runs an agent until it ends or a signal comes; its exit code. Raises NoConsulError."""
    process = subprocess.Popen(  # noqa: S603 - as above
        [
            # Ends with this process, even when that is killed.
            *(sys.executable, "-I", "-S", tied.__file__, str(os.getpid())),
            *_command(binary(), host, port),
        ]
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if _has_leader(f"http://{host}:{port}", process):
        ready = {"event": "listening", "http": f"{host}:{port}"}
        print(json.dumps(ready), flush=True)  # noqa: T201 - read by whoever started us
    return process.wait()


def _has_leader(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Returns when it can be registered at; False where it ended before."""
    ends_s = time.monotonic() + _READY_S
    while process.poll() is None:
        # Not the leader's address: that is there before the agent itself is in the catalog.
        with contextlib.suppress(OSError, ValueError):
            if _asked(f"{url}/v1/health/service/consul"):
                return True
        if time.monotonic() > ends_s:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            raise NoConsulError(f"the agent has no leader after {_READY_S:g} s")
        time.sleep(_POLL_S)
    return False


def _command(consul: str, host: str, port: int) -> list[str]:
    server, serf = free_ports(2)
    ports = {"http": port, "https": -1, "dns": -1, "grpc": -1}
    ports |= {"server": server, "serf_lan": serf, "serf_wan": -1}
    # The router keeps a question for each backend waiting; the default is 200.
    limits = {"http_max_conns_per_client": 2000}
    config = {"ports": ports, "limits": limits, "disable_update_check": True}
    return [
        *(consul, "agent", "-dev", f"-bind={host}", f"-client={host}", "-node=aiflow"),
        *("-log-level=warn", f"-hcl={json.dumps(config)}"),
    ]


def free_ports(count: int) -> list[int]:
    """Free for TCP and UDP, for gossip takes both."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            tcp = stack.enter_context(socket.socket())
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                found.append(port)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", required=True, metavar="HOST:PORT", help="where it listens")
    host, _, port = parser.parse_args().http.rpartition(":")
    try:
        code = run(host, int(port))
    except NoConsulError as error:
        sys.exit(str(error))
    sys.exit(max(code, 0))


if __name__ == "__main__":
    main()
