"""Fixtures that every test can ask for."""

pytest_plugins = ["fixtures.pictures", "fixtures.triton", "fixtures.wheels"]
