"""What goes wrong in a mesh stays where it is, is said clearly, and mends itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from aiflow.geometry.v1 import geometry_pb2, geometry_pb2_grpc
from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import Client
from aiflow_sdk.command.mesh import Mesh
from aiflow_sdk.errors import (
    AiflowError,
    BadInputError,
    DeadlineExceededError,
    MessageTooLargeError,
    ModelNotFoundError,
    NoEndpointError,
    ServiceNotFoundError,
    UnavailableError,
)

OUT_WITHIN_S = 3.0


def until(condition: Callable[[], object], *, within_s: float) -> float:
    """Seconds until `condition` was true; it is asked again and again, over the network."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
    return time.monotonic() - started


def listed(client: Client, backend: str) -> bool:
    return any(endpoint.backend == backend for endpoint in client.endpoints())


def geometry_request() -> geometry_pb2.AnnotateDimensionsRequest:
    box = [(160, 140), (100, 220), (90, 60), (130, 200), (120, 50), (200, 240), (210, 70)]
    box += [(220, 215), (230, 60)]
    return geometry_pb2.AnnotateDimensionsRequest(
        image_width=320,
        image_height=280,
        keypoints=[geometry_pb2.Point(x=x, y=y) for x, y in box],
        size=geometry_pb2.Size(width_cm=12, height_cm=9.5, depth_cm=8),
    )


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        pytest.param(b"", "empty", id="no bytes"),
        pytest.param(b"not a picture at all", "JPEG, PNG", id="another kind of file"),
        pytest.param(b"\xff\xd8\xff\xe0 torn off", "", id="a JPEG that is torn off"),
        pytest.param(
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0u0\0\0u0\x08\x02\0\0\0" + b"\0" * 4,
            "megapixels",
            id="a PNG of 900 megapixels, told by its header",
        ),
    ],
)
def test_a_corrupt_picture_fails_that_request_with_a_reason(
    client: Client, photo: bytes, picture: bytes, says: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        client.infer("detector", {"image": picture}, timeout_s=10)
    assert says in caught.value.message
    assert client.infer("detector", {"image": photo})["count"].item() >= 1


def test_an_unknown_model_names_the_nearest(client: Client) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        client.infer("detektor", {"image": b"x"})
    assert "detector" in caught.value.message


def test_an_unknown_service_names_the_nearest(client: Client) -> None:
    call: Any = client.channel().unary_unary("/aiflow.imaging.v1.ImageService/RenderOverlay")
    with pytest.raises(ServiceNotFoundError) as caught:
        call(b"")
    assert "aiflow.imaging.v1.ImagingService" in caught.value.message


def test_a_message_over_the_limit_is_refused_by_name(client: Client) -> None:
    with pytest.raises(MessageTooLargeError):
        client.infer("detector", {"image": np.full((1, 1), b"x" * (65 * 1024 * 1024), object)})


def test_a_label_without_a_network_names_those_that_have_one(client: Client, photo: bytes) -> None:
    box = np.array([[10, 10, 200, 200]], np.float32)
    with pytest.raises(BadInputError) as caught:
        client.infer("cuboid", {"image": photo, "box": box, "label": "submarine"})
    assert "cup" in caught.value.message


def test_an_expired_deadline_is_said_in_time(client: Client, photo: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.infer(
            "cutout", {"image": photo, "box": np.zeros((1, 4), np.float32)}, timeout_s=0.005
        )
    assert time.monotonic() - started < 1.0


def test_cancelled_calls_leave_nothing_in_flight(client: Client, photo: bytes) -> None:
    imaging = client.stub(imaging_pb2_grpc.ImagingServiceStub)
    request = imaging_pb2.ComposeContactSheetRequest(
        tiles=[imaging_pb2.ComposeContactSheetRequest.Tile(image=imaging_pb2.Image(data=photo))]
        * 64,
        tile_px=512,
    )
    calls = [imaging.ComposeContactSheet.future(request) for _ in range(4)]

    def ended() -> list[object]:
        return [call.exception() or "answered" for call in calls if call.done()]

    # They upload 18 MB, which is a while where both processors are busy.
    until(lambda: any(e.inflight for e in client.endpoints()) or ended(), within_s=20)
    assert not ended()
    for call in calls:
        call.cancel()
    until(lambda: not any(e.inflight for e in client.endpoints()), within_s=1)


def test_a_killed_server_is_out_within_three_seconds_and_comes_back(
    client: Client, whole_mesh: Mesh
) -> None:
    geometry = client.stub(geometry_pb2_grpc.GeometryServiceStub)
    assert len(geometry.AnnotateDimensions(geometry_request()).axes) == 3
    address = next(e.address for e in client.endpoints() if e.backend == "geometry")
    os.kill(whole_mesh.supervisor.pids()["geometry"], signal.SIGKILL)
    until(lambda: address not in [e.address for e in client.endpoints()], within_s=OUT_WITHIN_S)
    client.wait_ready(services=["aiflow.geometry.v1.GeometryService"], timeout_s=20)
    assert len(geometry.AnnotateDimensions(geometry_request()).axes) == 3


@pytest.mark.timeout(180)
def test_a_killed_triton_is_out_within_three_seconds_and_comes_back(
    client: Client, whole_mesh: Mesh, photo: bytes
) -> None:
    assert client.infer("detector", {"image": photo})["count"].item() >= 1
    keeper = psutil.Process(whole_mesh.supervisor.pids()["triton"])
    server = next(p for p in keeper.children(recursive=True) if p.name() == "tritonserver")
    server.kill()
    until(lambda: not listed(client, "triton"), within_s=OUT_WITHIN_S)
    with pytest.raises(NoEndpointError):
        client.infer("detector", {"image": photo}, timeout_s=0.3)
    geometry = client.stub(geometry_pb2_grpc.GeometryServiceStub)
    assert len(geometry.AnnotateDimensions(geometry_request()).axes) == 3
    client.wait_ready(models=["detector", "cutout", "cuboid"], timeout_s=60)
    assert client.infer("detector", {"image": photo})["count"].item() >= 1


@pytest.mark.timeout(180)
def test_a_triton_that_stops_answering_is_out_within_five_seconds(
    client: Client, whole_mesh: Mesh, photo: bytes
) -> None:
    keeper = psutil.Process(whole_mesh.supervisor.pids()["triton"])
    server = next(p for p in keeper.children(recursive=True) if p.name() == "tritonserver")
    server.suspend()
    try:
        until(lambda: not listed(client, "triton"), within_s=5)
    finally:
        server.resume()
    client.wait_ready(models=["detector"], timeout_s=60)
    assert client.infer("detector", {"image": photo})["count"].item() >= 1


@pytest.mark.timeout(180)
def test_a_killed_router_comes_back_and_its_servers_register_again(
    client: Client, whole_mesh: Mesh, photo: bytes
) -> None:
    os.kill(whole_mesh.supervisor.pids()["router"], signal.SIGKILL)
    until(lambda: not client.ready(timeout_s=0.5), within_s=5)
    with pytest.raises(UnavailableError, match="router"):
        client.infer("detector", {"image": photo}, timeout_s=0.2)
    client.wait_ready(
        models=["detector"], services=["aiflow.imaging.v1.ImagingService"], timeout_s=60
    )
    assert client.infer("detector", {"image": photo})["count"].item() >= 1


def test_every_failure_names_the_request(client: Client) -> None:
    with pytest.raises(AiflowError) as caught:
        client.infer("nothing-like-it", {"image": b"x"})
    assert caught.value.request_id
