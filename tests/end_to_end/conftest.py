"""One whole mesh for all end-to-end tests, as `aiflow up` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiflow_sdk import Client
from aiflow_sdk.command.mesh import Mesh, mesh
from aiflow_servers import places, weights


@pytest.fixture(scope="session")
def whole_mesh() -> Iterator[Mesh]:
    lines: list[str] = []
    with mesh(
        say=lambda part, line: lines.append(f"{part}: {line}"),
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
    ) as running:
        yield running


@pytest.fixture
def client(whole_mesh: Mesh) -> Iterator[Client]:
    """A client of a mesh in which everything is ready, whatever the test before did to it."""
    with Client(whole_mesh.router) as client:
        client.wait_ready(
            models=["detector", "cutout", "cuboid"],
            services=[
                "aiflow.imaging.v1.ImagingService",
                "aiflow.geometry.v1.GeometryService",
            ],
            timeout_s=60,
        )
        yield client


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A cup on a table, 600x400, CC0."""
    pictures = weights.ensure(group="pictures", cache=places.cache() / "pictures")
    return (pictures / "coffee.png").read_bytes()
