"""Fixtures that every test can ask for."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "fixtures.consul",
    "fixtures.disks",
    "fixtures.node",
    "fixtures.pictures",
    "fixtures.postgres",
    "fixtures.redis",
    "fixtures.triton",
    "fixtures.wheels",
]


# A machine that is busy for a moment is no fault of what is tested.
settings.register_profile("aiflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aiflow")


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start also where a shell runs them in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
