"""Keeps one endpoint registered for as long as it serves, whatever the registry is.

One background task owns the place: it registers, says that the endpoint lives as often as the
registry asks for, registers anew when the registry no longer knows it, and goes on trying while
the registry is away. The public methods only change what the task is to tell it and wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from enum import StrEnum

import structlog

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.errors import AiflowError
from aiflow_servers.runtime.registrar import Registrar

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 1.0
# How long a caller of ours waits for the registry to hear of a change before it goes on without.
_TELL_S = 1.0

_log = structlog.get_logger(__name__)


class RegistrationState(StrEnum):
    """What the registry knows of the endpoint, as far as we know."""

    IDLE = "idle"  # nothing to register: no models yet
    REGISTERED = "registered"
    DRAINING = "draining"
    FAILING = "failing"  # the registry is away or refuses the endpoint
    CLOSED = "closed"


def backoff_s(failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before the next try after `failures` failed ones in a row, at most 1 s.

    Half of it is random, so that a fleet does not fall upon a registry that has just come back.
    """
    whole = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(failures - 1, 10))
    return uniform(whole / 2, whole)


class Registration:
    """One endpoint's place in a registry.

    Args:
        registrar: the registry; it holds this endpoint and no other until `close`.
        endpoint: what to register; its models may change later.
    """

    def __init__(self, *, registrar: Registrar, endpoint: registry_pb2.Endpoint) -> None:
        self._registrar = registrar
        self._endpoint = registry_pb2.Endpoint()
        self._endpoint.CopyFrom(endpoint)
        self._held = False  # the registry knows the endpoint, as far as we know
        self._stale = True  # it has not heard the endpoint as it is now
        self._draining = False
        self._closing = False
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._problem = ""
        self.state = RegistrationState.IDLE
        self.failures_total = 0

    async def start(self) -> None:
        """Starts the background task and returns at once, registry or no registry."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="registration")

    async def set_models(self, models: Sequence[str]) -> None:
        """Replaces the models served; none at all takes the endpoint out until there are some.

        Returns when the registry has heard of it, or after a second: the task goes on telling it.
        """
        if list(models) != list(self._endpoint.models):
            self._endpoint.models[:] = models
            self._stale = True
            await self._tell()

    async def drain(self) -> None:
        """Has nothing new sent here; returns as `set_models` does."""
        self._draining = True
        await self._tell()

    async def close(self) -> None:
        """Takes the endpoint out (best effort, 1 s) and ends the task."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_TELL_S)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.state = RegistrationState.CLOSED

    async def _tell(self) -> None:
        self._told.clear()
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _TELL_S)

    async def _keep(self) -> None:
        failures = 0
        async with self._registrar.opened():
            while not self._closing:
                self._wake.clear()
                try:
                    pause_s = await self._step()
                except AiflowError as error:
                    failures += 1
                    pause_s = backoff_s(failures)
                    self._failed(error)
                else:
                    failures = 0
                    if not self._wake.is_set():
                        self._told.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
            with contextlib.suppress(AiflowError):
                await self._leave()

    async def _step(self) -> float | None:
        """Brings the registry up to date; seconds until it must hear from us again, if ever."""
        serves_something = bool(self._endpoint.models or self._endpoint.services)
        if not serves_something:
            await self._leave()
            self._reached(RegistrationState.IDLE)
            return None
        if self._held and not self._stale:
            renew_s = await self._renew()
            if renew_s is not None:
                return renew_s
        if self._draining and not self._held:
            self._reached(RegistrationState.DRAINING)
            return None  # a place that is being given up is not taken anew
        return await self._register()

    async def _register(self) -> float | None:
        """As `_renew`."""
        self._stale = False  # set again by whoever changes the endpoint while the call is out
        try:
            renew_s = await self._registrar.register(self._endpoint, anew=not self._held)
        except BaseException:
            self._stale = True
            raise
        self._held = True
        if not self._draining:
            self._reached(RegistrationState.REGISTERED)
            return renew_s
        return await self._renew()  # changed while it drains: it must go on draining

    async def _renew(self) -> float | None:
        """Seconds until the next time; None where the registry has forgotten the endpoint."""
        draining = self._draining
        renew_s = await self._registrar.renew(draining=draining)
        if renew_s is None:
            self._held = False
            _log.warning(
                "forgotten by the registry: it restarted, or could not reach the endpoint",
                **self._names(),
            )
        else:
            self._reached(RegistrationState.DRAINING if draining else RegistrationState.REGISTERED)
        return renew_s

    async def _leave(self) -> None:
        if self._held:
            await self._registrar.deregister()
            self._held = False

    def _reached(self, state: RegistrationState) -> None:
        if state is not self.state:
            _log.info("registration", state=state.value, **self._names())
        self.state, self._problem = state, ""

    def _failed(self, error: AiflowError) -> None:
        self.failures_total += 1
        problem = str(error)
        # The text differs from try to try; the cause is what a reader wants to see change.
        cause = problem.partition(":")[0]
        if cause != self._problem:
            _log.warning("registration", state="failing", problem=problem, **self._names())
        self.state, self._problem = RegistrationState.FAILING, cause

    def _names(self) -> dict[str, str]:
        return {
            "registry": self._registrar.address,
            "backend": self._endpoint.backend,
            "address": self._endpoint.address,
        }
