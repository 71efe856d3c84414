"""A small model server of its own process, which registers at Consul when it is told to.

    python benchmarks/discovery_server.py CONSUL MODEL [MODEL ...]

Prints its address when it listens, waits for a line, registers, and prints in seconds of the
machine's monotonic clock when it began to. It answers every inference with the request.
"""

from __future__ import annotations

import asyncio
import sys
import time

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from passthrough import OPTIONS
from router_backend import Echo

from aiflow.registry.v1 import registry_pb2
from aiflow_servers.runtime.consul_registrar import ConsulRegistrar
from aiflow_servers.runtime.registration import Registration


async def main(consul: str, models: list[str]) -> None:
    server = grpc.aio.server(options=OPTIONS)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Echo(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    print(address, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    endpoint = registry_pb2.Endpoint(
        # A backend that nobody has heard of: the router has to find that too.
        backend=models[-1],
        address=address,
        protocol=registry_pb2.PROTOCOL_OIP,
        models=models,
    )
    registration = Registration(registrar=ConsulRegistrar(consul=consul), endpoint=endpoint)
    begun_s = time.monotonic()
    await registration.start()
    print(begun_s, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
