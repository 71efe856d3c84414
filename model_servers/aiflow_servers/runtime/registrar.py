"""Where a server makes itself known: the seam between a server and the mesh's registries."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiflow.registry.v1 import registry_pb2


class Registrar(Protocol):
    """One registry that holds one endpoint of ours; `Registration` says when to call what.

    Each method but `opened` raises AiflowError where the registry is away or refuses.
    """

    @property
    def address(self) -> str:
        """Of the registry, for logs."""
        ...

    @property
    def caller(self) -> str | None:
        """Address "host:port" of a router that will call the endpoint; None where not known."""
        ...

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Holds the connections; the other methods are called inside this block only."""
        ...

    async def register(self, endpoint: registry_pb2.Endpoint, *, anew: bool) -> float:
        """Enters the endpoint as ready, or replaces what is known of it.

        Args:
            endpoint: what is served, and where.
            anew: the registry holds nothing of ours that we know of.

        Returns:
            Seconds within which `renew` has to be called.
        """
        ...

    async def renew(self, *, draining: bool) -> float | None:
        """Says that the endpoint lives; seconds as `register`, None where it was forgotten."""
        ...

    async def deregister(self) -> None:
        """Takes the endpoint out; fine where it is not in."""
        ...
