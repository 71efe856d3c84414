"""Fixtures that every test can ask for."""

import signal

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


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start also where a shell runs them in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
