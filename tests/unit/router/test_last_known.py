"""The last view on disk: what is saved is loaded, and nothing else is."""

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.last_known import LastKnownError, load, save
from aiflow_router.catalog.snapshot import Entry

NAMES = st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), unique=True, min_size=1).map(tuple)
ENTRIES = st.lists(
    st.builds(
        Entry,
        endpoint=st.builds(
            Endpoint,
            backend=st.from_regex(r"[a-z]{1,9}", fullmatch=True),
            address=st.integers(1, 65535).map("h:{}".format),
            protocol=st.just(Protocol.OIP),
            models=NAMES,
            services=NAMES,
            weight=st.integers(1, 1000),
            zone=st.text("abc"),
            version=st.text("abc"),
            device=st.text("abc"),
        ),
        state=st.sampled_from(State),
    )
)
GOOD = {
    "backend": "b",
    "address": "h:1",
    "protocol": "oip",
    "models": ["m"],
    "services": [],
    "weight": 1,
    "zone": "",
    "version": "",
    "device": "",
    "state": "ready",
}


@given(entries=ENTRIES)
def test_what_is_saved_is_loaded(
    entries: list[Entry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("last") / "view.json"
    save(path, entries, source="here", clock=lambda: 7.0)
    assert load(path, source="here") == (tuple(entries), 7.0)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        pytest.param({"format": 2}, "has format 2", id="of a later version"),
        pytest.param({"source": "there"}, "is the view of there", id="of another Consul"),
        pytest.param({"endpoints": None}, "is damaged, remove it", id="no endpoints"),
        pytest.param({"endpoints": [{}]}, "is damaged", id="an endpoint without anything"),
        pytest.param({"endpoints": [{**GOOD, "state": "odd"}]}, "is damaged", id="a state"),
        pytest.param({"endpoints": [{**GOOD, "models": ["a b"]}]}, "not a name", id="a wrong name"),
        pytest.param({"endpoints": [{**GOOD, "weight": "1"}]}, "is damaged", id="a wrong type"),
    ],
)
def test_what_cannot_be_used_says_why(document: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    good = {"format": 1, "source": "here", "saved_at_s": 1.0, "endpoints": [GOOD]}
    assert isinstance(document, dict)
    path.write_bytes(orjson.dumps({**good, **document}))
    with pytest.raises(LastKnownError, match=says):
        load(path, source="here")


def test_a_file_that_is_not_there_or_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    with pytest.raises(LastKnownError, match="cannot be read: No such file"):
        load(path, source="here")
    path.write_bytes(b'{"format": 1')
    with pytest.raises(LastKnownError, match="is damaged"):
        load(path, source="here")


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(LastKnownError, match="make the folder writable"):
        save(tmp_path / "nowhere" / "view.json", [], source="here")
    assert not list(tmp_path.iterdir())
