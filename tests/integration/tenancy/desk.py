"""An office on a database of the test's own, with a clock that is moved by hand."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity.caller import Caller, Right, Role
from aiflow_router.tenancy.book import PageOf
from aiflow_router.tenancy.keys import NewKey
from aiflow_router.tenancy.office import Office

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
ALL = PageOf()
ROOT = Caller(name="ops", tenant="ops", key="ops", may=frozenset({"admin"}), role="platform_admin")


class Clock:
    """The wall clock, moved by hand."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """An office, with a clock and what was told everywhere."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.wall = Clock()
        self.told: list[int] = []
        self.office = Office(engine, everywhere=self.everywhere, wall=self.wall)

    async def everywhere(self, number: int) -> None:
        self.told.append(number)

    async def tenant(self, name: str = "acme") -> None:
        await self.office.tenants.create(
            ROOT, name, weight=1.0, pays_first="member", when_out="pool"
        )

    async def member(self, name: str, role: Role = "member", department: str = "") -> Caller:
        """Made by the platform; who calls with a key of it that may `admin`."""
        await self.office.members.create(ROOT, "acme", name, department=department, role=role)
        return caller(name, role, department=department)

    async def key(self, by: Caller, member: str, **options: Any) -> NewKey:
        given: dict[str, Any] = {
            "name": "laptop",
            "models": (),
            "methods": (),
            "rights": (),
            "lives_s": 0.0,
        }
        return await self.office.keys.create(by, "acme", member, **{**given, **options})

    async def changes(self) -> list[tuple[str, str, str]]:
        """Action, subject and actor, the latest last."""
        page = await self.office.changes.list(ROOT, "", ALL, kind="", subject="")
        return [(one.action, one.subject, one.actor) for one in reversed(page.items)]


def caller(
    member: str, role: Role = "member", *rights: Right, department: str = "", key: str = ""
) -> Caller:
    may = frozenset(rights or ("call", "admin"))
    return Caller(
        name="k", tenant="acme", member=member, role=role, department=department, key=key, may=may
    )
