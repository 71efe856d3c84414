"""All that can be administered, over one database."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.tenancy.applications import Applications
from aiflow_router.tenancy.book import Book, Everywhere
from aiflow_router.tenancy.changes import Changes
from aiflow_router.tenancy.invitations import Invitations
from aiflow_router.tenancy.keys import Keys
from aiflow_router.tenancy.knocks import Knocks
from aiflow_router.tenancy.members import Members
from aiflow_router.tenancy.tenants import Tenants


class Office:
    """Every operation is told the caller, and refuses what the caller's role does not allow.

    Args:
        everywhere: awaited with the number of each change; None where nobody has to know.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        everywhere: Everywhere | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        book = Book(engine, everywhere=everywhere, wall=wall)
        self.tenants = Tenants(book)
        self.members = Members(book)
        self.keys = Keys(book)
        self.invitations = Invitations(book)
        self.applications = Applications(book)
        self.changes = Changes(book)
        self.knocks = Knocks(clock=clock)
        self.wall = wall
