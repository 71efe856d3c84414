"""The demo makes both flows' pictures, says who served each step, and leaves nothing running."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from aiflow_sdk.command.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "examples/demo.py")]


def demo(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, "--out", str(out), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "AIFLOW_TEST_RUN": str(out)},
    )


def left_over(out: Path) -> list[str]:
    """Processes that the demo of this test started and did not stop."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIFLOW_TEST_RUN") == str(out):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue  # it ended meanwhile
    return found


@pytest.mark.timeout(300)
def test_the_demo_makes_the_pictures_and_stops_what_it_started(tmp_path: Path) -> None:
    process = demo(tmp_path)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    main_image = Image.open(tmp_path / "cup-main-image.jpg")
    assert main_image.size == (2000, 2000)
    assert {main_image.getpixel(corner) for corner in ((0, 0), (1999, 0), (0, 1999))} == {
        (255, 255, 255)
    }
    assert max(Image.open(tmp_path / "cup-dimensions.jpg").size) >= 1600
    assert Image.open(tmp_path / "contact-sheet.jpg").width > 1000
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert [step["served_by"].partition("@")[0] for step in steps] == [
        *("detector", "cutout", "imaging"),
        *("detector", "cuboid", "geometry", "imaging"),
        "imaging",
    ]
    assert all(step["elapsed_ms"] > 0 for step in steps)
    for step in steps:
        assert step["name"] in said
    assert str(tmp_path / "contact-sheet.jpg") in said
    assert left_over(tmp_path) == []


def test_the_dimension_lines_are_drawn_over_the_photo(
    whole_mesh: Mesh, tmp_path: Path, photo: bytes
) -> None:
    process = demo(tmp_path, "--router", whole_mesh.router)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    drawn = Image.open(tmp_path / "cup-dimensions.jpg").convert("RGB")
    plain = Image.open(io.BytesIO(photo)).convert("RGB").resize(drawn.size)
    red = sum(
        r > 180 and g < 60 and b < 90
        for (r, g, b), before in zip(drawn.getdata(), plain.getdata(), strict=True)
        if max(abs(one - other) for one, other in zip((r, g, b), before, strict=True)) > 60
    )
    assert red > 1000


@pytest.mark.timeout(200)
def test_ctrl_c_in_the_middle_leaves_nothing_running(tmp_path: Path) -> None:
    process = demo(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "ready" in line:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=60) == 130
    deadline_s = time.monotonic() + 10
    while left_over(tmp_path) and time.monotonic() < deadline_s:
        pass
    assert left_over(tmp_path) == []


def test_a_router_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    process = demo(tmp_path, "--router", "127.0.0.1:1")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "127.0.0.1:1" in said


def test_a_folder_that_cannot_be_written_is_one_clear_line(whole_mesh: Mesh) -> None:
    process = demo(Path("/proc/none"), "--router", whole_mesh.router)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "/proc/none" in said
