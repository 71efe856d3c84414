"""The server that docs/servers.md teaches: copied out of it, run by `aiflow serve`, called."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[3]
SERVE = "from aiflow_servers.runtime.command import serve; serve(prog_name='aiflow serve')"


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def grey_png() -> bytes:
    picture = io.BytesIO()
    Image.new("L", (64, 64), 128).save(picture, "PNG")
    return picture.getvalue()


def test_the_server_of_the_docs_runs_and_is_as_short_as_they_say(tmp_path: Path) -> None:
    (proto,), (server, test), (toml,) = blocks("proto"), blocks("python"), blocks("toml")
    assert len([line for line in server.splitlines() if line.strip()]) <= 30
    folder = tmp_path / "acme" / "sharpness" / "v1"
    folder.mkdir(parents=True)
    (folder / "sharpness.proto").write_text(proto)
    (tmp_path / "sharpness.py").write_text(server)
    fixture = f"import pytest\n\n@pytest.fixture\ndef grey_png():\n    return {grey_png()!r}\n"
    (tmp_path / "test_sharpness.py").write_text(f"{fixture}\n{test}")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    installed = tmp_path / "sharpness-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sharpness\nVersion: 1.0\n")
    entry = toml.replace('[project.entry-points."aiflow.servers"]', "[aiflow.servers]")
    (installed / "entry_points.txt").write_text(entry.replace('"', ""))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    generated = ["--python_out=.", "--grpc_python_out=.", "acme/sharpness/v1/sharpness.proto"]
    run("-m", "grpc_tools.protoc", "-I.", *generated)
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sharpness.py")
    assert "Servers installed here: geometry, imaging, sharpness" in run("-c", SERVE, "--help")
