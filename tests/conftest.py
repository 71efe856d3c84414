"""Fixtures that every test can ask for."""

pytest_plugins = [
    "fixtures.disks",
    "fixtures.node",
    "fixtures.pictures",
    "fixtures.triton",
    "fixtures.wheels",
]
