"""What README and docs/command.md tell to run, runs: copied from the page, not written again."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aiflow_sdk import Client
from aiflow_sdk.command.mesh import Mesh
from aiflow_sdk.command.up import first_call

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PAGES = README + (ROOT / "docs/command.md").read_text()
COMMANDS = [
    command.replace("\\\n", "")
    for command in re.findall(
        r"^    (aiflow (?!up|router|canary)(?:\\\n|.)*)$", PAGES, re.MULTILINE
    )
]
LINKS = re.findall(r"\]\(([^)#:]+)\)", README)


@pytest.fixture
def folder(tmp_path: Path, photo: bytes) -> Path:
    (tmp_path / "photo.jpg").write_bytes(photo)
    return tmp_path


def run(command: list[str], folder: Path, router: str) -> str:
    environment = {
        **os.environ,
        "AIFLOW_ROUTER": router,
        # What aiflow.yaml's comment and docs/command.md say to export.
        "AIFLOW_API_KEY": (ROOT / ".cache" / "aiflow-admin.key").read_text().strip(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_has_a_first_call_from_the_sdk_and_one_from_a_stub() -> None:
    assert ["aiflow_sdk" in code for code in CODE] == [True, False]
    assert ["Stub(" in code for code in CODE] == [False, True]


@pytest.mark.usefixtures("client")
def test_the_first_call_from_the_sdk_finds_the_cup(whole_mesh: Mesh, folder: Path) -> None:
    script = CODE[0].replace("127.0.0.1:7600", whole_mesh.router)
    out = run([sys.executable, "-c", script], folder, whole_mesh.router)
    assert re.search(r"^(cup|Coffee cup|mug|.*[Cc]up.*) 0\.\d\d \[", out, re.MULTILINE), out
    assert "served by detector@" in out


@pytest.mark.usefixtures("client")
def test_the_first_call_from_a_stub_measures_three_sides(whole_mesh: Mesh, folder: Path) -> None:
    script = CODE[1].replace("127.0.0.1:7600", whole_mesh.router)
    out = run([sys.executable, "-c", script], folder, whole_mesh.router)
    assert out.splitlines() == [
        "DIMENSION_WIDTH 12 cm",
        "DIMENSION_HEIGHT 9.5 cm",
        "DIMENSION_DEPTH 8 cm",
    ]


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("command", COMMANDS)
def test_each_shell_line_works(command: str, whole_mesh: Mesh, folder: Path) -> None:
    assert run(shlex.split(command), folder, whole_mesh.router)


def test_the_first_call_that_up_prints_works(
    client: Client, whole_mesh: Mesh, folder: Path
) -> None:
    assert client.ready()
    first = first_call(whole_mesh)
    assert first.startswith("aiflow infer detector ")
    assert "Coffee cup" in run(shlex.split(first), folder, whole_mesh.router)


@pytest.mark.parametrize("link", LINKS)
def test_each_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
