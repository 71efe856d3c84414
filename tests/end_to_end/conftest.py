"""One whole mesh for all end-to-end tests: router, Triton and CPU servers as `aiflow up` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aiflow_sdk import Client
from aiflow_sdk.command.mesh import Mesh, mesh
from aiflow_servers import places, weights

ROOT = Path(__file__).resolve().parents[2]


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
    return (weights.pictures() / "coffee.png").read_bytes()
