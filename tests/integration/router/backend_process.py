"""The echoing backend as a process of its own; prints its address."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from integration.router.kit import backend, echo


async def main() -> None:
    async def hang(seen: object, context: object) -> None:
        await context.write(await context.read())  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with backend(Hang=hang, ModelStreamInfer=echo) as running:
        print(running.address, flush=True)  # noqa: T201 - read by the test
        await asyncio.Event().wait()


asyncio.run(main())
