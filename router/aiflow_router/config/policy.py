"""The part of aiflow.yaml that may change while the router runs, and where it may come from."""

from __future__ import annotations

import re

from pydantic import field_validator, model_validator

from aiflow_router.config.discovery import Consul
from aiflow_router.config.limit import Limit
from aiflow_router.config.route import Route
from aiflow_router.config.values import Section
from aiflow_sdk.consul import DEFAULT_ADDRESS, address_problem

# A path as people write them, so that it needs no quoting in a shell or a URL.
_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class PolicyDocument(Section):
    """What an operator sends or stores under a key; in aiflow.yaml its keys stand beside others.

    Every key of it is a key of `Config` too: see `file.differing`.
    """

    routes: tuple[Route, ...] = ()
    limits: tuple[Limit, ...] = ()


class ConsulTLS(Section):
    """PEM files, for an https address."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class ConsulKV(Section):
    # Has the policy; the versions lie below it.
    key: str
    # None for the Consul of `discovery`, as that is reached, else for the agent of this machine.
    address: str | None = None
    # Read anew when it changes.
    token_file: str | None = None
    datacenter: str | None = None
    tls: ConsulTLS = ConsulTLS()

    @field_validator("key")
    @classmethod
    def _path(cls, value: str) -> str:
        if not _KEY.fullmatch(value):
            raise ValueError("must be a key such as aiflow/policy: letters, digits, . _ - and /")
        return value

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and (problem := address_problem(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _usable(self) -> ConsulKV:
        if (self.tls.cert is None) != (self.tls.key is None):
            raise ValueError("tls: `cert` and `key` belong together: give both or none")
        if self.address is None:
            given = {"token_file", "datacenter", "tls"} & self.model_fields_set
            if given:
                raise ValueError(
                    f"`{min(given)}` belongs to an `address`: give that too, or leave both out to "
                    "ask the Consul of `discovery`"
                )
        elif self.tls != ConsulTLS() and not self.address.startswith("https:"):
            raise ValueError(
                f"`tls` has no effect with {self.address}: write https:// there, or leave it out"
            )
        return self

    def reached(self, discovery: Consul | None) -> ConsulKV:
        """With all that is needed to reach it, which may be as `discovery` is."""
        if self.address is not None:
            return self
        if discovery is None:
            return self.model_copy(update={"address": DEFAULT_ADDRESS})
        return ConsulKV(
            key=self.key,
            address=discovery.address,
            token_file=discovery.token_file,
            datacenter=discovery.datacenter,
            tls=ConsulTLS(ca=discovery.ca, cert=discovery.cert, key=discovery.key),
        )


class PolicySources(Section):
    """Beside the file and PolicyService, which always are."""

    consul_kv: ConsulKV | None = None
