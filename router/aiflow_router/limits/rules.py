"""Which rules are about a call, and what it asks of them.

Found once for each caller and name, and remembered until the policy changes: a further call that
asks for nothing but calls gets the same asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aiflow_router.limits.rule import Ask, Per, Rule

# Callers and names that are remembered; then all are found anew.
_REMEMBERED = 100_000


class Who(Protocol):
    """What rules read of a caller."""

    @property
    def tenant(self) -> str: ...

    @property
    def department(self) -> str: ...

    @property
    def member(self) -> str: ...

    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The rules about calls of one caller to one name, those that are off left out.

    Attributes:
        asks: of each rule; ready to be asked where nothing `varies`.
        by_session: positions whose bucket is the call's session's.
        by_units: positions whose cost is not 1.
        waits: a call may have to wait for one of them.
        settles: a call that went well has to be settled.
    """

    asks: tuple[Ask, ...]
    by_session: tuple[int, ...]
    by_units: tuple[int, ...]
    varies: bool
    waits: bool
    settles: bool


NOTHING = Matched(asks=(), by_session=(), by_units=(), varies=False, waits=False, settles=False)

_PARTS: Mapping[Per, Callable[[Who, str], str]] = {
    "tenant": lambda who, _: _quoted(who.tenant),
    # Departments, members and sessions are named within their tenant.
    "department": lambda who, _: f"{_quoted(who.tenant)}/{_quoted(who.department)}",
    "member": lambda who, _: f"{_quoted(who.tenant)}/{_quoted(who.member)}",
    "key": lambda who, _: _quoted(who.key),
    "model": lambda _, name: _quoted(name),
    "session": lambda who, _: f"{_quoted(who.tenant)}/",
}


class Rules:
    """Immutable but for what it remembers.

    Attributes:
        all: as the policy has them.
        some: there is at least one that is not off.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.all = tuple(rules)
        active = [rule for rule in rules if rule.mode != "off"]
        self.some = bool(active)
        self._everywhere = [rule for rule in active if not rule.model and not rule.service]
        self._by_name: dict[tuple[str, str], list[Rule]] = {}
        for rule in active:
            if rule.model or rule.service:
                kind = "model" if rule.model else "service"
                self._by_name.setdefault((kind, rule.model or rule.service), []).append(rule)
        self._order = {rule.name: at for at, rule in enumerate(rules)}
        self._found: dict[tuple[str, ...], Matched] = {}

    def matched(self, who: Who, kind: Literal["model", "service"], name: str) -> Matched:
        """Those about a call of `who` to the model or service `name`."""
        known = (who.key, who.member, who.tenant, who.department, kind, name)
        found = self._found.get(known)
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[known] = self._match(who, kind, name)
        return found

    def after(self, rules: Sequence[Rule]) -> Rules:
        """Of the policy that follows; a rule that is the same stays the same object."""
        before = {rule.name: rule for rule in self.all}
        return Rules(
            [before[rule.name] if before.get(rule.name) == rule else rule for rule in rules]
        )

    def _match(self, who: Who, kind: Literal["model", "service"], name: str) -> Matched:
        rules = [*self._everywhere, *self._by_name.get((kind, name), ())]
        if not rules:
            return NOTHING
        rules.sort(key=lambda rule: self._order[rule.name])
        by_session = tuple(at for at, rule in enumerate(rules) if "session" in rule.per)
        by_units = tuple(at for at, rule in enumerate(rules) if rule.unit != "calls")
        return Matched(
            asks=tuple(Ask(rule=rule, bucket=bucket(rule, who, name), cost=1.0) for rule in rules),
            by_session=by_session,
            by_units=by_units,
            varies=bool(by_session or by_units),
            waits=any(rule.wait and rule.mode == "enforce" for rule in rules),
            settles=bool(by_units) or any(rule.kind == "concurrency" for rule in rules),
        )


def bucket(rule: Rule, who: Who, name: str, session: str = "") -> str:
    """The name of the bucket of a rule that a call is about."""
    parts = [
        _PARTS[per](who, name) + (_quoted(session) if per == "session" else "") for per in rule.per
    ]
    return "|".join((rule.name, *parts))


def _quoted(part: str) -> str:
    """So that no two buckets have one name, whatever people call things."""
    return part.replace("%", "%25").replace("|", "%7C").replace("/", "%2F")


def asked(
    matched: Matched, who: Who, name: str, *, session: str, cost: Callable[[Rule], float]
) -> tuple[Ask, ...]:
    """The asks of a call for which something varies; `cost` is of rules that count no calls."""
    asks = list(matched.asks)
    for at in {*matched.by_session, *matched.by_units}:
        rule = asks[at].rule
        asks[at] = Ask(
            rule=rule,
            bucket=bucket(rule, who, name, session)
            if at in matched.by_session
            else asks[at].bucket,
            cost=cost(rule) if at in matched.by_units else 1.0,
        )
    return tuple(asks)
