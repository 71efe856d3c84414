"""Small decisions of the command: waits, addresses, what bytes are, how log lines read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_sdk import BadInputError, Endpoint
from aiflow_sdk.command import explain, files, mesh, status, up
from aiflow_sdk.command.administration import say_table
from aiflow_sdk.command.processes import Backoff


@given(crashes=st.integers(1, 10_000), drawn=st.floats(0, 1))
def test_restarts_wait_longer_each_time_up_to_a_bound(crashes: int, drawn: float) -> None:
    wait_s = Backoff(min_s=0.5, max_s=10).wait_s(crashes, draw=lambda: drawn)
    assert 0.25 <= wait_s <= 10
    assert wait_s <= 0.5 * 2 ** min(crashes - 1, 10)


@pytest.mark.parametrize(
    ("listening", "reachable"),
    [
        ("0.0.0.0:7600", "127.0.0.1:7600"),
        ("[::]:7600", "127.0.0.1:7600"),
        ("10.0.0.3:7600", "10.0.0.3:7600"),
    ],
)
def test_a_server_on_every_interface_is_reached_on_this_machine(
    listening: str, reachable: str
) -> None:
    assert mesh._reachable(listening) == reachable


def test_a_free_port_is_chosen_before_the_router_starts() -> None:
    claimed = mesh._claim("127.0.0.1:0", name="--grpc")
    assert claimed.startswith("127.0.0.1:")
    assert not claimed.endswith(":0")
    with pytest.raises(BadInputError, match="is not an address"):
        mesh._claim("7600", name="--grpc")


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"\x89PNG\r\n\x1a\n", ".png"),
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", ".webp"),
        (b"  <svg xmlns=", ".svg"),
        (b"cup", ""),
        (b"", ""),
    ],
)
def test_pictures_are_known_by_their_first_bytes(data: bytes, suffix: str) -> None:
    assert files.media_suffix(data) == suffix


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ('{"event": "up", "level": "info", "timestamp": "t", "n": 1, "a": "b"}', "up n=1 a=b"),
        ('{"event": "bad", "level": "error", "exception": "T: x"}', "ERROR bad\nT: x"),
        ('{"no": "event"}', '{"no": "event"}'),
        ("[1]", "[1]"),
    ],
)
def test_json_logs_are_shown_readably(line: str, shown: str) -> None:
    assert up._readable(line) == shown


@pytest.mark.parametrize(("expires_in_s", "shown"), [(1.84, "1.8 s"), (0.0, "none")])
def test_an_endpoint_without_a_lease_is_not_about_to_expire(
    expires_in_s: float, shown: str
) -> None:
    endpoint = Endpoint(
        backend="echo",
        address="127.0.0.1:9001",
        protocol="oip",
        models=("echo",),
        services=(),
        state="READY",
        weight=1,
        zone="",
        version="1.4 [beta]",
        device="gpu:0",
        inflight=0,
        expires_in_s=expires_in_s,
    )
    columns = {column.header: list(column.cells) for column in status._table((endpoint,)).columns}
    assert columns["lease"] == [shown]
    assert columns["version"] == [r"1.4 \[beta]"], "a version is no markup"
    assert columns["device"] == ["gpu:0"]


def test_a_record_is_a_line_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"aif_0000000{number}", "a long name " * 20) for number in range(3)]
    monkeypatch.delenv("COLUMNS", raising=False)
    say_table(("key", "name"), rows, empty="")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["key", *(key for key, _ in rows)]


def test_an_id_is_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    say_table(("key", *"abcd"), [("aif_1a2b3c4d", *["some words"] * 4)], empty="")
    assert "aif_1a2b3c4d" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0.05, "50 ms"), (15, "15 s"), (600, "10 min"), (18_300, "5.08 h"), (2e6, "23.1 d")],
)
def test_a_time_is_told_in_a_unit_that_fits(value_s: float, text: str) -> None:
    assert explain._seconds(value_s) == text
