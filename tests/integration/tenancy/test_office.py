"""What holds for all that is administered, on both databases: pages, and what is refused."""

from __future__ import annotations

import pytest
from integration.tenancy.desk import ALL, ROOT, Desk

from aiflow_router.tenancy.book import PageOf
from aiflow_sdk import errors


async def test_lists_come_in_pages(desk: Desk) -> None:
    await desk.tenant()
    for number in range(7):
        await desk.member(f"m{number}")
    token, found = "", []
    while True:
        part = PageOf(size=3, token=token)
        page = await desk.office.members.list(ROOT, "acme", part, department="")
        found.append([one.member for one in page.items])
        token = page.next
        if not token:
            break
    assert found == [["m0", "m1", "m2"], ["m3", "m4", "m5"], ["m6"]]
    log = await desk.office.changes.list(ROOT, "acme", PageOf(size=7), kind="", subject="")
    rest = await desk.office.changes.list(
        ROOT, "acme", PageOf(size=7, token=log.next), kind="", subject=""
    )
    assert [one.subject for one in rest.items] == ["acme"]
    assert rest.next == ""
    for size in (-1, 1001):
        with pytest.raises(errors.BadInputError, match="page_size"):
            await desk.office.members.list(ROOT, "acme", PageOf(size=size), department="")
    with pytest.raises(errors.BadInputError, match="page_token"):
        await desk.office.changes.list(ROOT, "", PageOf(token="x"), kind="", subject="")
    with pytest.raises(errors.BadInputError, match="did you mean key"):
        await desk.office.changes.list(ROOT, "", ALL, kind="keys", subject="")


async def test_what_is_refused_changes_nothing(desk: Desk) -> None:
    await desk.tenant()
    before = await desk.changes()
    with pytest.raises(errors.NotFoundError):
        await desk.office.members.create(ROOT, "acme", "ann", department="no", role="member")
    assert await desk.changes() == before
    assert len(desk.told) == 1


async def test_what_no_database_takes_is_bad_input_or_not_there(desk: Desk) -> None:
    with pytest.raises((errors.BadInputError, errors.NotFoundError)):
        await desk.office.tenants.get(ROOT, "nul\0")
    with pytest.raises((errors.BadInputError, errors.NotFoundError)):
        await desk.office.keys.get(ROOT, "\0")
