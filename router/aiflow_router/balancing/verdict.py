"""What the checks of an endpoint's health add up to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """How endpoints in use are checked.

    Attributes:
        interval_s: between checks where the endpoint does not tell by itself.
        timeout_s: a check that takes longer has failed.
        unhealthy_after, healthy_after: checks in a row that change the verdict.
        shadow: verdicts are counted, and keep no endpoint out.
    """

    interval_s: float = 5.0
    timeout_s: float = 2.0
    unhealthy_after: int = 2
    healthy_after: int = 2
    shadow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Healthy until shown otherwise.

    Attributes:
        against: checks in a row that spoke against it.
    """

    healthy: bool = True
    against: int = 0

    def after(self, *, passed: bool, policy: HealthPolicy) -> Verdict:
        if passed == self.healthy:
            return Verdict(healthy=self.healthy)
        needed = policy.unhealthy_after if self.healthy else policy.healthy_after
        if self.against + 1 >= needed:
            return Verdict(healthy=passed)
        return Verdict(healthy=self.healthy, against=self.against + 1)

    @classmethod
    def refusing(cls, policy: HealthPolicy) -> Verdict:
        """It says itself that it takes no calls; so the moment it says that it does, it does."""
        return cls(healthy=False, against=policy.healthy_after - 1)
