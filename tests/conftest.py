"""Fixtures that every test can ask for."""

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
