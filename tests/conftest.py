"""Fixtures that every test can ask for."""

pytest_plugins = [
    "fixtures.consul",
    "fixtures.disks",
    "fixtures.node",
    "fixtures.pictures",
    "fixtures.redis",
    "fixtures.postgres",
    "fixtures.triton",
    "fixtures.wheels",
]
