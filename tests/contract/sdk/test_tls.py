"""TLS to the router, with certificates made for the test."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import trustme
from contract.sdk.kit import ONE, double

from aiflow_sdk import TLS, AsyncClient, BadInputError, Client, UnavailableError
from aiflow_sdk.testing import serving


class Certificates:
    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("router.internal")
        client = authority.issue_cert("client.internal")
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        authority.cert_pem.write_to_path(self.ca)
        client.cert_chain_pems[0].write_to_path(self.cert)
        client.private_key_pem.write_to_path(self.key)
        self.credentials = grpc.ssl_server_credentials(
            [(server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())],
            root_certificates=authority.cert_pem.bytes(),
            require_client_auth=True,
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


async def test_both_clients_call_over_mutual_tls(certificates: Certificates) -> None:
    tls = TLS(
        ca_file=certificates.ca,
        cert_file=certificates.cert,
        key_file=certificates.key,
        server_name="router.internal",
    )
    with serving({"double": double}, credentials=certificates.credentials) as server:
        with Client(server.address, tls=tls) as client:
            assert client.infer("double", ONE)["y"].tolist() == [[2, 2]]
        async with AsyncClient(server.address, tls=tls) as other:
            assert (await other.infer("double", ONE))["y"].tolist() == [[2, 2]]


def test_a_router_of_another_name_or_authority_is_not_trusted(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with serving({"double": double}, credentials=certificates.credentials) as server:
        for tls in (
            TLS(ca_file=certificates.ca),
            TLS(ca_file=other, server_name="router.internal"),
        ):
            with (
                Client(server.address, tls=tls, timeout_s=5) as client,
                pytest.raises(UnavailableError),
            ):
                client.infer("double", ONE)


def test_files_that_are_missing_are_named() -> None:
    with pytest.raises(BadInputError, match=r"ca_file '/no/ca.pem' cannot be read"):
        Client(tls=TLS(ca_file="/no/ca.pem"))
    with pytest.raises(BadInputError, match="belong together"):
        TLS(cert_file="cert.pem")
