"""The `aiflow` command: finds its subcommands by entry point and imports only the one it runs."""

from __future__ import annotations

import difflib
import importlib.metadata
from typing import Any

import click

from aiflow_sdk.errors import AiflowError

# One line each, so that --help needs no import; and the extra that brings what it needs.
_KNOWN = {
    "call": ("Call any method of a typed service.", ""),
    "canary": ("Give a model's new version more of its calls.", ""),
    "check": ("Check a configuration file.", "router"),
    "credits": ("See, give and move credits, by which calls are paid.", ""),
    "explain": ("Show what the router would do with a call, or did.", ""),
    "infer": ("Ask a model.", ""),
    "key": ("Make, see, change and end keys.", ""),
    "member": ("Make, see, change and invite members of a tenant.", ""),
    "policy": ("See and change the routes of a running router.", "router"),
    "router": ("Run the router.", "router"),
    "serve": ("Run a CPU server, such as imaging.", "servers"),
    "status": ("Show what the router serves.", ""),
    "tenant": ("Make, see and change tenants.", ""),
    "triton": ("Run Triton with the project's models.", "servers"),
    "up": ("Start the whole mesh on this machine.", "router,servers"),
    "usage": ("Show what was used, as a table or as CSV.", ""),
    "weights": ("Fetch and check the models' weights.", "servers"),
}


class CallFailedError(click.ClickException):
    """A failed call, as one line for a person; exit code 1."""

    def __init__(self, error: AiflowError) -> None:
        hints = []
        if error.retry_after_s is not None and error.retry_after_s >= 0:
            hints.append(f"try again after {error.retry_after_s:g} s")
        if error.request_id:
            hints.append(f"request id {error.request_id}")
        super().__init__(f"{error} ({', '.join(hints)})" if hints else str(error))


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_entry_points())

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        entry = _entry_points().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except ImportError as error:
            return _Missing(cmd_name, error)
        if not isinstance(command, click.Command):
            raise click.ClickException(f"{entry.value} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in _entry_points():
            near = difflib.get_close_matches(name, _entry_points(), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " `aiflow --help` lists them."
            raise click.UsageError(f"There is no command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in _KNOWN:
                rows.append((name, _KNOWN[name][0]))
            else:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str() if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AiflowError as error:
            raise CallFailedError(error) from error


class _Missing(click.Command):
    """Stands in for a command that cannot be imported; says what to install."""

    def __init__(self, name: str, error: ImportError) -> None:
        super().__init__(name, context_settings={"ignore_unknown_options": True})
        self._error = error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: ARG002 - same
        extra = _KNOWN.get(str(self.name), ("", ""))[1]
        missing = self._error.name or ""
        if extra and not missing.startswith("aiflow"):
            raise click.ClickException(
                f"`aiflow {self.name}` needs the package '{missing}' ({self._error}): "
                f"pip install 'aiflow[{extra}]'"
            )
        raise click.ClickException(f"`aiflow {self.name}` cannot be loaded: {self._error}")

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002 - same
        return f"(cannot be loaded: {self._error})"


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group="aiflow.commands")}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aiflow", message="aiflow %(version)s")
def main() -> None:
    """A gRPC model-serving mesh: one router in front of models and services.

    Start everything on this machine with `aiflow up`, then ask it with `aiflow infer` and
    `aiflow call`.
    """
