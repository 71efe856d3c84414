"""Python SDK of AIFlow: clients, typed errors, the testing kit and the `aiflow` command."""
