"""Everything Triton needs, fetched and laid out, so that it only has to be started."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aiflow_servers import places, weights
from aiflow_servers.triton import repository as repositories
from aiflow_servers.triton.install import has_gpu, install
from aiflow_servers.triton.process import Launch

_KEPT_LOGS = 20


def prepare(
    *,
    repository: Path,
    models: Sequence[str],
    scratch: Path,
    report: Callable[[str], None],
    gpu: bool | None = None,
    batching: bool = True,
    host: str = "127.0.0.1",
    grpc_port: int = 0,
    metrics_port: int = 0,
) -> Launch:
    """Installs what is missing and says how to run it.

    Args:
        repository: folder of models.
        models: names of those to serve; none means all.
        scratch: an empty folder that lives as long as Triton.
        report: takes a line about each thing that takes time.
        gpu: use the CUDA build of onnxruntime; None looks for a GPU.
        batching: False takes dynamic batching out of every model.
        host: where Triton listens.
        grpc_port: 0 takes a free one.
        metrics_port: 0 takes a free one.

    Raises:
        AiflowError: something cannot be had, found or written; the message says what to do.
    """
    cache = places.cache()
    chosen = repositories.choose(repository, models)
    gpu = has_gpu() if gpu is None else gpu
    installation = install(cache=cache, report=report, gpu=gpu)
    fetched = weights.ensure(cache=cache / "weights", report=report)
    if not batching:
        repository = repositories.without_batching(repository, scratch / "repository")
    return Launch(
        installation=installation,
        repository=repository,
        models=chosen,
        weights=fetched,
        device="gpu" if gpu else "cpu",
        log=log_in(cache / "triton" / "logs", report),
        host=host,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )


def log_in(folder: Path, report: Callable[[str], None]) -> Path:
    """The log file of this process in `folder`, where only the latest of earlier ones stay."""
    with places.locked(folder, report):  # another one may be tidying up too
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in logs[_KEPT_LOGS - 1 :]:
            old.unlink(missing_ok=True)
    return folder / f"{os.getpid()}.log"
