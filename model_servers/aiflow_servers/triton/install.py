"""Brings Triton and the environment its models run in onto this machine.

Triton comes from NVIDIA's wheel `nvidia-pytriton`, of which only the server is used. Its models
run in a virtual environment of their own, because Triton's Python backend returns wrong data
without an error where NumPy is 2 or later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiflow_models
from aiflow_sdk.errors import RefusedError
from aiflow_servers import places

WHEEL = "nvidia-pytriton==0.7.0"  # Triton 2.51
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"

_SERVER = "pytriton/tritonserver"
_LIBRARIES = "nvidia_pytriton.libs"
_CPU_RUNTIME = "onnxruntime=="

Report = Callable[[str], None]


class InstallError(RefusedError):
    """Triton cannot be installed here; the message says why and what to do."""

    default_reason = "INSTALL_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where Triton and its models' environment are."""

    server: Path
    """Folder with `bin/tritonserver` and `backends/`."""
    libraries: Path
    """Shared libraries of the server."""
    environment: Path
    """Virtual environment of the models, with numpy < 2, and onnxruntime for CPU or GPU."""


def install(*, cache: Path, report: Report, gpu: bool | None = None) -> Installation:
    """Installs what is missing, and says where it is; quick when everything is there.

    Args:
        cache: root of the cache folder.
        report: takes a line about each thing that takes time.
        gpu: install the CUDA build of onnxruntime; None looks for an NVIDIA GPU.

    Raises:
        InstallError: this machine is not supported, or a package cannot be had.
        CacheNotWritableError: the folder cannot be written.
    """
    _check_machine()
    wanted_gpu = has_gpu() if gpu is None else gpu
    folder = cache / "triton"
    with places.locked(folder, report):
        home = _install_server(folder, report)
        environment = _install_environment(folder, report, gpu=wanted_gpu)
    return Installation(
        server=home / _SERVER,
        libraries=home / _LIBRARIES,
        environment=environment,
    )


def has_gpu() -> bool:
    """Whether the NVIDIA driver sees a GPU."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return (gpus.is_dir() and any(gpus.iterdir())) or _runs(["nvidia-smi", "-L"])


def requirements(*, gpu: bool) -> list[str]:
    """What the models need, pinned: `aiflow_models/requirements.txt`, for CPU or GPU."""
    text = Path(aiflow_models.__file__).with_name("requirements.txt").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    if gpu:
        # The two builds exclude one another.
        lines = [_for_gpu(line) for line in lines]
    return [line for line in lines if line]


def _for_gpu(line: str) -> str:
    if not line.startswith(_CPU_RUNTIME):
        return line
    return f"onnxruntime-gpu[cuda,cudnn]=={line.removeprefix(_CPU_RUNTIME)}"


def _check_machine() -> None:
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64"):
        raise InstallError(
            f"Triton's wheel is for Linux on x86_64, this is {' on '.join(machine)}: run the mesh"
            " with --without triton and register a Triton that runs elsewhere"
        )


def _install_server(folder: Path, report: Report) -> Path:
    home = folder / f"server-{WHEEL_SHA256[:12]}"
    if home.is_dir():
        return home
    report(f"Triton: downloading {WHEEL} (53 MB)")
    with _partial(home) as partial:
        wheel = _download(partial)
        report("Triton: unpacking")
        with zipfile.ZipFile(wheel) as archive:
            wanted = (f"{_SERVER}/", f"{_LIBRARIES}/")
            archive.extractall(partial, [n for n in archive.namelist() if n.startswith(wanted)])
        wheel.unlink()
        server = partial / _SERVER
        stub = _stub(server)
        shutil.copy(stub, server / "backends/python/triton_python_backend_stub")
        for binary in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
            (server / binary).chmod(0o755)
    return home


def _download(folder: Path) -> Path:
    _pip(sys.executable, "download", "--no-deps", "--dest", str(folder), WHEEL)
    wheel = next(folder.glob("*.whl"))
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise InstallError(
            f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}: the registry serves"
            " another file under this version; check where pip takes it from"
        )
    return wheel


def _stub(server: Path) -> Path:
    """The part of the Python backend that embeds this interpreter's version."""
    stubs = server / "python_backend_stubs"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.exists():
        has = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise InstallError(f"Triton's wheel runs models with Python {has}, this is {version}")
    library = interpreter_library()
    if library is None:
        raise InstallError(
            f"Triton needs the shared library of Python {version}"
            f" (apt install libpython{version}), and there is none"
        )
    return stub


def interpreter_library() -> Path | None:
    """The folder with libpython of this interpreter; None where it has none."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if not name.endswith((".so", ".so.1.0")):
        name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"/usr/lib/{multiarch}"]
    return next((Path(f) for f in folders if f and (Path(f) / name).exists()), None)


def _install_environment(folder: Path, report: Report, *, gpu: bool) -> Path:
    wanted = requirements(gpu=gpu)
    models = Path(aiflow_models.__file__).parent
    made_of = [sys.version, sys.base_prefix, str(models), *wanted]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    environment = folder / f"models-{key}"
    if environment.is_dir():
        return environment
    report(f"Triton: installing the models' environment ({', '.join(wanted)})")
    with _partial(environment) as partial:
        base = getattr(sys, "_base_executable", sys.executable)
        _run([base, "-m", "venv", str(partial)], "making a virtual environment failed")
        python = str(partial / "bin/python")
        _pip(python, "install", "--prefer-binary", *wanted)
        # Linked, so that the environment sees this package of ours and no other.
        (next(partial.glob("lib/*/site-packages")) / models.name).symlink_to(models)
        check = "import numpy, sys; sys.exit(numpy.__version__ if numpy.__version__ >= '2' else 0)"
        _run([python, "-c", check], "the models' environment has numpy 2 or later")
    return environment


class _partial:  # noqa: N801 - reads as a verb where it is used
    """A folder that takes its final name only when it is complete."""

    def __init__(self, final: Path) -> None:
        self._final = final

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._final.parent))
        return self._path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._path.chmod(0o755)  # mkdtemp keeps others out; an image is built by root
            self._path.rename(self._final)
        else:
            shutil.rmtree(self._path, ignore_errors=True)


def _pip(python: str, *arguments: str) -> None:
    what = f"pip {arguments[0]} failed"
    options = ["--disable-pip-version-check", "--quiet", "--no-input"]
    _run([python, "-m", "pip", *arguments, *options], what)


def _run(command: Sequence[str], what: str) -> None:
    # The caller's environment minus what would put its packages in front of the new ones.
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603 - our own command line
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise InstallError(f"{what}: {' '.join(lines[-3:]) or f'exit code {done.returncode}'}")


def _runs(command: Sequence[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)  # noqa: S603 - our own command line
    return done.returncode == 0 and bool(done.stdout.strip())
