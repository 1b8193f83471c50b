"""The demo: ship the embedded digits network, then ResNet-50, at half the compute.

Run it with ``make demo``, or ``python examples/demo.py --out FOLDER``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from pruneport.commands import ShipConfig, ship
from pruneport.commands.terminal.display import Display
from pruneport.commands.terminal.tables import show
from pruneport.models.digits.train import write_images


def main() -> None:
    """Ship both networks and say where the reports lie."""
    parser = argparse.ArgumentParser(description="Ship two networks at half their compute.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where the two bundles go")
    out = parser.parse_args().out
    console = Console(highlight=False)
    start_s = time.monotonic()

    console.rule("1. The embedded network: trained on handwritten digits, measured on images it never saw")
    with tempfile.TemporaryDirectory() as folder:
        digits = ShipConfig(
            source="pruneport:digits_resnet",
            weights="DEFAULT",
            flops=0.5,
            out=out / "digits",
            overwrite=True,
            images=write_images(Path(folder) / "digits-test"),
            calibration=write_images(Path(folder) / "digits-train", trained_on=True),
            mean=(0.5,),
            std=(0.5,),
        )
        with Display(console, "shipping the digits network") as display:
            digits_result = ship(digits, display, command="make demo")
    show(digits_result, console)

    console.rule("2. ResNet-50: the latency of half the compute on this CPU")
    resnet = ShipConfig(
        source="torchvision:resnet50",
        flops=0.5,
        out=out / "resnet50",
        overwrite=True,
        batches=(1, 4),
        repeats=20,
        parity_batches=(1, 3),
    )
    with Display(console, "shipping ResNet-50") as display:
        resnet_result = ship(resnet, display, command="make demo")
    show(resnet_result, console)

    console.rule(f"Done in {time.monotonic() - start_s:.0f} s")
    for result in (digits_result, resnet_result):
        console.print(f"{result.plan.source.spec}: {result.report.resolve()}", markup=False, soft_wrap=True)
    uri = digits_result.report.resolve().as_uri()
    console.print(f"Open a report in a browser: python3 -m webbrowser {uri}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
