"""Runs both product-image flows on real photos through a mesh of its own.

    make demo

Starts the router, Triton and the CPU servers on free ports of this machine, so that it runs
beside anything else, and stops what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flows import NoProductFoundError, Report, Step, dimensions, main_image
from rich.console import Console
from rich.table import Table

from aiflow.geometry.v1 import geometry_pb2
from aiflow.imaging.v1 import imaging_pb2, imaging_pb2_grpc
from aiflow_sdk import AiflowError, Client
from aiflow_sdk.command.mesh import mesh
from aiflow_sdk.command.processes import StartError
from aiflow_servers import places, weights

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What is known of a product besides its photo."""

    name: str
    photo: bytes
    title: str
    size: geometry_pb2.Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture and the file it goes to."""

    file: str
    caption: str
    image: bytes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the pictures"
    )
    parser.add_argument("--router", help="use the mesh at this address instead of starting one")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        products = sample_products()
        with running_mesh(options.router) as router, Client(router) as client:
            console.print("\n[bold]2. Two flows on each photo")
            steps, pictures = run_flows(client, products)
            files = write(options.out, pictures)
            show(steps, files, total_s=time.monotonic() - started)
            (options.out / "steps.json").write_text(json.dumps(steps, indent=2) + "\n")
            console.print("\n[bold]4. Stopping what was started" if not options.router else "")
    except (AiflowError, NoProductFoundError, StartError) as error:
        console.print(f"[red]demo failed:[/] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def sample_products() -> list[Product]:
    """Photos whose licence lets anyone use them (CC0), and what a shop knows of the products."""
    pictures = weights.ensure(
        group="pictures", cache=places.cache() / "pictures", report=console.print
    )
    return [
        Product(
            name="cup",
            photo=(pictures / "coffee.png").read_bytes(),
            title="Espresso cup with saucer",
            size=geometry_pb2.Size(width_cm=8.5, height_cm=6.2, depth_cm=8.5),
        ),
    ]


@contextlib.contextmanager
def running_mesh(router: str | None) -> Iterator[str]:
    """The address of a router with everything the flows need behind it."""
    if router is not None:
        yield router
        return
    console.print("[bold]1. Starting the mesh[/] (router, Triton, CPU servers)")
    started = time.monotonic()
    with mesh(say=say, grpc="127.0.0.1:0", http="127.0.0.1:0", discovery="embedded") as running:
        console.print(
            f"   up in {time.monotonic() - started:.1f} s: {', '.join(running.models)};"
            f" {', '.join(service.rpartition('.')[2] for service in running.services)}"
        )
        yield running.router


def say(part: str, line: str) -> None:
    """Shows what a part says about itself, without its log."""
    if not line.startswith("{"):
        console.print(f"   [dim]{part:>9}[/]  {line}", highlight=False)


def run_flows(
    client: Client, products: list[Product]
) -> tuple[list[dict[str, object]], list[Picture]]:
    """Both flows for each product: the steps they took and the pictures they made."""
    steps: list[dict[str, object]] = []
    pictures: list[Picture] = []

    def reporting(flow: str) -> Report:
        return lambda step: steps.append({"flow": flow, **asdict(step)})

    for product in products:
        pictures.append(
            Picture(file=f"{product.name}-photo.png", caption="photo", image=product.photo)
        )
        flow = f"main image of the {product.name}"
        image = main_image(client, product.photo, title=product.title, report=reporting(flow))
        pictures.append(Picture(file=f"{product.name}-main-image.jpg", caption=flow, image=image))
        flow = f"dimensions of the {product.name}"
        image, _ = dimensions(client, product.photo, size=product.size, report=reporting(flow))
        pictures.append(Picture(file=f"{product.name}-dimensions.jpg", caption=flow, image=image))
    sheet, step = contact_sheet(client, pictures)
    steps.append({"flow": "contact sheet", **asdict(step)})
    return steps, [*pictures, Picture(file="contact-sheet.jpg", caption="", image=sheet)]


def contact_sheet(client: Client, pictures: list[Picture]) -> tuple[bytes, Step]:
    """All pictures on one."""
    imaging = client.stub(imaging_pb2_grpc.ImagingServiceStub)
    reply = client.call(
        imaging.ComposeContactSheet,
        imaging_pb2.ComposeContactSheetRequest(
            tiles=[
                imaging_pb2.ComposeContactSheetRequest.Tile(
                    image=imaging_pb2.Image(data=picture.image), caption=picture.caption
                )
                for picture in pictures
            ],
            columns=3,
            tile_px=640,
            format=imaging_pb2.IMAGE_FORMAT_JPEG,
        ),
    )
    step = Step(name="lay out the sheet", served_by=reply.served_by, elapsed_ms=reply.elapsed_ms)
    return reply.message.image.data, step


def write(folder: Path, pictures: list[Picture]) -> list[Path]:
    """Writes the pictures and returns where they are."""
    with places.writing(folder):
        for picture in pictures:
            (folder / picture.file).write_bytes(picture.image)
    return [folder / picture.file for picture in pictures]


def show(steps: list[dict[str, object]], files: list[Path], *, total_s: float) -> None:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("served by", style="cyan", overflow="fold")
    table.add_column("ms", justify="right")
    for flow, of_flow in itertools.groupby(steps, key=lambda step: step["flow"]):
        table.add_section()
        table.add_row(f"[bold]{flow}")
        for step in of_flow:
            table.add_row(f"  {step['name']}", str(step["served_by"]), f"{step['elapsed_ms']:.0f}")
    console.print(table)
    console.print(f"\n[bold]3. Pictures[/] ({total_s:.1f} s after the start)")
    for file in files:
        console.print(f"   {file}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
