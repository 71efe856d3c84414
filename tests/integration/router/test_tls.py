"""listen.tls: who gets in, and certificates that change while calls go on."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from integration.router.kit import ANY_PORT, backend, infer, mesh
from integration.router.processes_kit import router as router_process
from integration.router.processes_kit import start

from aiflow.registry.v1 import registry_pb2
from aiflow_router.config.file import parse
from aiflow_sdk import TLS, AsyncClient, Client, UnavailableError
from aiflow_servers.runtime.lease_registrar import LeaseRegistrar

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Files:
    """A router's certificate in `folder`, and those of two authorities."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.cert, self.key = folder / "router.pem", folder / "router.key"
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue(self.authority)

    def issue(self, authority: trustme.CA) -> None:
        """Replaces the router's certificate, each file in one piece."""
        made = authority.issue_cert("127.0.0.1")
        for path, blob in (
            (self.key, made.private_key_pem),
            (self.cert, made.cert_chain_pems[0]),
        ):
            new = path.with_suffix(".new")
            blob.write_to_path(new)
            new.replace(path)

    def client(self) -> TLS:
        made = self.authority.issue_cert("caller")
        cert, key = self.folder / "caller.pem", self.folder / "caller.key"
        made.cert_chain_pems[0].write_to_path(cert)
        made.private_key_pem.write_to_path(key)
        return TLS(ca_file=self.ca, cert_file=cert, key_file=key)

    def config(self, more: str = "") -> str:
        return ANY_PORT.replace(
            "listen: {", f"listen: {{tls: {{cert: {self.cert}, key: {self.key}{more}}}, ", 1
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def answers(address: str, tls: TLS | None) -> bool:
    """On a connection of its own."""
    async with AsyncClient(address, tls=tls, timeout_s=1) as client:
        return await client.health() == "SERVING"


async def refuses(address: str, tls: TLS | None) -> None:
    with pytest.raises(UnavailableError):
        await answers(address, tls)


async def test_calls_and_registrations_are_encrypted(files: Files) -> None:
    trusted = TLS(ca_file=files.ca)
    async with mesh(parse(files.config())) as m, backend() as server:
        address = m.router.grpc_address
        registrar = LeaseRegistrar(router=address, tls=trusted)
        async with registrar.opened():
            endpoint = registry_pb2.Endpoint(
                backend="b",
                address=server.address,
                protocol=registry_pb2.PROTOCOL_OIP,
                models=["m"],
            )
            await registrar.register(endpoint, anew=True)
            credentials = trusted.credentials()
            async with grpc.aio.secure_channel(address, credentials) as channel:
                ask: Any = channel.unary_unary(INFER)
                assert await ask(infer("m"), timeout=5) == infer("m")
        with Client(address, tls=trusted) as client:
            assert await asyncio.to_thread(client.health) == "SERVING"
        await refuses(address, None)  # Plain text.
        stranger = files.folder / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        await refuses(address, TLS(ca_file=stranger))


async def test_a_client_may_need_a_certificate(files: Files) -> None:
    config = files.config(f", client_ca: {files.ca}")
    async with mesh(parse(config)) as m:
        address = m.router.grpc_address
        assert await answers(address, files.client())
        await refuses(address, TLS(ca_file=files.ca))
        files.authority = trustme.CA()
        others = files.client()
        await refuses(address, replace(others, ca_file=files.ca))


async def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not_taken(files: Files) -> None:
    before = TLS(ca_file=files.ca)
    later = trustme.CA()
    after = TLS(ca_file=files.folder / "later.pem")
    later.cert_pem.write_to_path(files.folder / "later.pem")
    async with mesh(parse(files.config())) as m:
        address = m.router.grpc_address
        async with AsyncClient(address, tls=before) as open_before:
            assert await open_before.health() == "SERVING"
            files.cert.write_bytes(b"nonsense")
            assert await answers(address, before)
            files.issue(later)
            assert await answers(address, after)
            await refuses(address, before)
            assert await open_before.health() == "SERVING"  # Who is connected stays so.


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_router_does_not_start_with_what_it_cannot_use(
    files: Files, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    tls = f"{{cert: {files.cert}, key: {other.key}}}"
    file = tmp_path / "aiflow.yaml"
    file.write_text(
        f"listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', workers: {workers}, tls: {tls}}}"
    )
    process = await start("router", "--config", str(file), cwd=tmp_path)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert f"listen.tls.cert: {files.cert} cannot be used: with key {other.key}: " in said.decode()


async def test_workers_show_it_too_and_the_command_takes_it(files: Files, tmp_path: Path) -> None:
    config = (
        f"listen: {{workers: 2, drain_grace: 0s, tls: {{cert: {files.cert}, key: {files.key}}}}}\n"
    )
    async with router_process(tmp_path, config) as running:
        for _ in range(6):  # Each on a connection of its own.
            assert await answers(running.address, TLS(ca_file=files.ca))
        command = ("policy", "list", "--router", running.address, "--tls-ca", str(files.ca))
        listed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aiflow_sdk.command", *command, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await listed.communicate()
        assert said.startswith(b"version"), said
