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

import numpy as np
import psutil
import pytest
from PIL import Image

from aiflow_sdk.command.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples/demo.py"), "--out", str(out), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "AIFLOW_TEST_RUN": str(out)},
    )


def demo(out: Path, *arguments: str) -> tuple[int, str]:
    """Exit code of a whole run, and what it said."""
    with start(out, *arguments) as process:
        said, _ = process.communicate(timeout=240)
    return process.returncode, said


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def left_over(out: Path) -> list[str]:
    """Processes that the demo of this test started and that are there five seconds later.

    One that was killed takes a moment to go.
    """
    deadline_s = time.monotonic() + 5
    while (found := running(out)) and time.monotonic() < deadline_s:
        continue
    return found


def running(out: Path) -> list[str]:
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
    code, said = demo(tmp_path)
    assert code == 0, said
    main_image = picture(tmp_path / "cup-main-image.jpg")
    assert main_image.size == (2000, 2000)
    assert {main_image.getpixel(corner) for corner in ((0, 0), (1999, 0), (0, 1999))} == {
        (255, 255, 255)
    }
    assert max(picture(tmp_path / "cup-dimensions.jpg").size) >= 1600
    assert picture(tmp_path / "contact-sheet.jpg").width > 1000
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
    code, said = demo(tmp_path, "--router", whole_mesh.router)
    assert code == 0, said
    drawn = picture(tmp_path / "cup-dimensions.jpg")
    with Image.open(io.BytesIO(photo)) as image:
        plain = image.convert("RGB").resize(drawn.size)
    drawn_over = np.abs(np.asarray(drawn, np.int16) - np.asarray(plain, np.int16)).max(axis=2) > 60
    red, green, blue = np.moveaxis(np.asarray(drawn), 2, 0)
    in_red = drawn_over & (red > 180) & (green < 60) & (blue < 90)
    assert in_red.sum() > 1000  # lines and numbers
    assert drawn_over.mean() < 0.1  # and the photo is still there


@pytest.mark.timeout(200)
def test_ctrl_c_in_the_middle_leaves_nothing_running(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "ready" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    assert left_over(tmp_path) == []


def test_a_router_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    code, said = demo(tmp_path, "--router", "127.0.0.1:1")
    assert code == 1
    assert "Traceback" not in said
    assert "127.0.0.1:1" in said


def test_a_folder_that_cannot_be_written_is_one_clear_line(whole_mesh: Mesh) -> None:
    code, said = demo(Path("/proc/none"), "--router", whole_mesh.router)
    assert code == 1
    assert "Traceback" not in said
    assert "/proc/none" in said
