"""The policy of a router, seen and changed by an operator's program: see aiflow.admin.v1.

with Client() as client:
    admin = PolicyAdmin(client)
    print(admin.get().version)
    admin.set(Path("routes.yaml").read_text(), name="routes.yaml")
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_sdk.client import Client
from aiflow_sdk.errors import DeadlineExceededError, UnavailableError

# A watch is asked for anew after this time, and so long after the router was lost.
WATCH_S = 3600.0
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy that is, was or would be in force."""

    version: str
    source: str
    """"file", "consul" or "admin"."""
    origin: str
    """Which file or key, or who sent it."""
    since_s: float
    """Unix time."""
    text: str
    """The effective policy as JSON; empty in lists."""

    def document(self) -> dict[str, Any]:
        """The effective policy as plain values, such as {"routes": [...]}."""
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A policy that was not taken, while nothing was accepted from the same place since."""

    source: str
    origin: str
    at_s: float
    """Unix time."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What came of a change."""

    policy: Policy
    """In force now; of a dry run what would be."""
    replaced: Policy
    holds: str
    """For how long, for a person."""


class PolicyAdmin:
    """Every method raises an `AiflowError` of the class that fits."""

    def __init__(self, client: Client) -> None:
        self._stub = client.stub(policy_pb2_grpc.PolicyServiceStub)

    def get(self, version: str = "") -> Policy:
        """The policy in force, or an earlier one."""
        return _policy(self._stub.Get(policy_pb2.GetPolicyRequest(version=version)).policy)

    def refusal(self) -> Refusal | None:
        """What was refused last; None where all is in order."""
        answer = self._stub.List(policy_pb2.ListPoliciesRequest())
        return _refusal(answer.refusal) if answer.HasField("refusal") else None

    def list(self) -> tuple[Policy, ...]:
        """The versions that are kept, the newest first, without their texts."""
        answer = self._stub.List(policy_pb2.ListPoliciesRequest())
        return tuple(_policy(found) for found in answer.policies)

    def set(
        self, text: str, *, name: str = "", expected: str = "", dry_run: bool = False
    ) -> Change:
        """Puts another policy in force; returns when every worker goes by it.

        Args:
            text: what aiflow.yaml has under `routes:`, that key included; YAML or JSON.
            name: what problems are to call it, such as its file.
            expected: the version that it is meant to replace; empty for any.
            dry_run: only say what would be in force.
        """
        request = policy_pb2.SetPolicyRequest(
            document=text, name=name, expected_version=expected, dry_run=dry_run
        )
        answer = self._stub.Set(request)
        return _change(answer.policy, answer.replaced, answer.holds)

    def edit(
        self, edit: Callable[[dict[str, Any]], dict[str, Any]], *, dry_run: bool = False
    ) -> Change:
        """Puts in force what `edit` makes of the document in force.

        Raises RefusedError, with reason POLICY_CHANGED, where another one came between.
        """
        current = self.get()
        text = json.dumps(edit(current.document()))
        return self.set(text, expected=current.version, dry_run=dry_run)

    def rollback(self, version: str, *, expected: str = "") -> Change:
        """Puts an earlier version in force again."""
        request = policy_pb2.RollbackPolicyRequest(version=version, expected_version=expected)
        answer = self._stub.Rollback(request)
        return _change(answer.policy, answer.replaced, answer.holds)

    def watch(self, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Policy]:
        """The policy in force, then each that follows, for ever; asks again where it was lost."""
        told = ""
        while True:
            try:
                for answer in self._stub.Watch(policy_pb2.WatchPolicyRequest(), timeout=WATCH_S):
                    found = _policy(answer.policy)
                    if found.version != told:
                        told = found.version
                        yield found
            except (UnavailableError, DeadlineExceededError):
                if not told:
                    raise  # It was never there.
            sleep(AGAIN_S)


def _change(policy: policy_pb2.Policy, replaced: policy_pb2.Policy, holds: str) -> Change:
    return Change(policy=_policy(policy), replaced=_policy(replaced), holds=holds)


def _policy(found: policy_pb2.Policy) -> Policy:
    return Policy(
        version=found.version,
        source=found.source,
        origin=found.origin,
        since_s=found.since_unix_ms / 1000,
        text=found.document,
    )


def _refusal(found: policy_pb2.Refusal) -> Refusal:
    return Refusal(
        source=found.source,
        origin=found.origin,
        at_s=found.at_unix_ms / 1000,
        problems=tuple(found.problems),
    )
