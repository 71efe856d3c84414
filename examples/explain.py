"""What `aiflow explain` prints: the page docs/explain.md shows it.

    python examples/explain.py

A model is split between two versions and has a fallback. One of the two servers of the old version
is gone, the one of the new version is out of memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import AiflowError, Client, UnavailableError
from aiflow_sdk.command.mesh import mesh
from aiflow_sdk.tensors import Array, TensorValue
from aiflow_sdk.testing import serving

POLICY = """\
routes:
  - match: {model: detector}
    timeout: 2s
    balance: peak_ewma
    split: {detector: 90, detector-v2: 10}
    fallback: [detector-lite]
"""


def answer(_: Mapping[str, Array]) -> Mapping[str, TensorValue]:
    return {"boxes": np.zeros((1, 4), np.float32)}


def busy(_: Mapping[str, Array]) -> Mapping[str, TensorValue]:
    raise UnavailableError("out of memory")


def register(client: Client, model: str, address: str) -> None:
    client.stub(registry_pb2_grpc.RegistryServiceStub).Register(
        registry_pb2.RegisterRequest(
            endpoint=registry_pb2.Endpoint(
                backend=model,
                address=address,
                protocol=registry_pb2.PROTOCOL_OIP,
                models=[model],
            ),
            ttl_ms=60_000,
        )
    )


def show(router: str, *words: str) -> None:
    print(f"$ aiflow explain {' '.join(words)}", flush=True)
    command = (sys.executable, "-m", "aiflow_sdk.command", "explain", *words, "--router", router)
    subprocess.run(command, check=False)  # noqa: S603 - our own command
    print(flush=True)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "aiflow.yaml"
        config.write_text(POLICY, encoding="utf-8")
        running = stack.enter_context(
            mesh(
                say=lambda *_: None,
                config=config,
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
                servers=(),
                triton=False,
            )
        )
        client = stack.enter_context(Client(running.router))
        works = {"detector": answer, "detector-v2": busy, "detector-lite": answer}
        for model, work in works.items():
            server = stack.enter_context(serving({model: work}))
            register(client, model, server.address)
        with serving({"detector": answer}) as killed:
            register(client, "detector", killed.address)
        fell_back = ""
        for number in range(60):
            try:
                reply = client.infer("detector", {"x": np.zeros(1)}, request_id=f"call-{number}")
            except AiflowError as error:
                print(error)
                continue
            if reply.served_by.startswith("detector-lite"):
                fell_back = f"call-{number}"
        show(running.router, "--model", "detector", "--tenant", "shop")
        show(running.router, fell_back)
        show(running.router, "--model", "detecter")


if __name__ == "__main__":
    main()
