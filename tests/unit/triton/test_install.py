"""Installing Triton: what is asked of pip, and that nothing half or wrong is ever used."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.wheels import OfferWheel

from aiflow_servers.triton import install


def test_the_models_packages_are_pinned_and_for_the_cpu() -> None:
    wanted = install.requirements(gpu=False)
    assert all("==" in line and "#" not in line for line in wanted)
    assert [line for line in wanted if line.startswith("numpy==1.")]
    assert [line for line in wanted if line.startswith("onnxruntime==")]


def test_for_a_gpu_only_the_runtime_is_another_of_the_same_version() -> None:
    cpu, gpu = install.requirements(gpu=False), install.requirements(gpu=True)
    (one,), (other,) = set(cpu) - set(gpu), set(gpu) - set(cpu)
    assert one.startswith("onnxruntime==")
    assert other == one.replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]")


def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "server"
    with install._partial(final) as partial:
        (partial / "file").touch()
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    assert final.stat().st_mode & 0o777 == 0o755, "who did not install it may use it"


def test_a_folder_that_failed_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), install._partial(tmp_path / "server") as partial:
        (partial / "file").write_text(str(1 / len(list(partial.iterdir()))))
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_another_sha256_is_not_used(tmp_path: Path, offer_wheel: OfferWheel) -> None:
    name, _, version = install.WHEEL.partition("==")
    offer_wheel(name, version, {"pytriton/tritonserver/bin/tritonserver": b"#!/bin/sh\n"})
    cache = tmp_path / "cache"
    said: list[str] = []
    with pytest.raises(install.InstallError, match=f"expected {install.WHEEL_SHA256}"):
        install.install(cache=cache, report=said.append, gpu=False)
    assert said == [f"Triton: downloading {install.WHEEL} (53 MB)"]
    assert [path.name for path in (cache / "triton").iterdir()] == [".lock"]


def test_a_package_that_cannot_be_had(tmp_path: Path, offer_wheel: OfferWheel) -> None:
    assert offer_wheel("something-else", "1", {})
    with pytest.raises(install.InstallError, match=r"pip download failed: .*nvidia-pytriton"):
        install.install(cache=tmp_path, report=lambda _: None, gpu=False)
