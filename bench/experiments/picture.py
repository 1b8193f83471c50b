"""The picture in the README: the report of CIFAR-10's ResNet-56 at 0.6 of its compute, as the defaults make it.

Calibration images are the task's training images, accuracy is counted on all 2000 test images.
``python bench/experiments/picture.py --data FOLDER`` takes minutes on two cores and needs Chromium; the folder is that
of ``PRUNEPORT_TEST_DATA``. ``--bundle DIR`` draws the report of a bundle that is there already.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

__all__ = ["main", "photograph"]

_ROOT = Path(__file__).resolve().parents[2]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WIDTH, _HEIGHT = 900, 2300  # pixels: down to the latency figures


def main() -> None:
    """Ship the network where no bundle is given, and write the picture of its report."""
    parser = argparse.ArgumentParser(description="Make the README's picture of a report.")
    parser.add_argument("--data", type=Path, help="holds weights/ and data/imagenet-samples/")
    parser.add_argument("--bundle", type=Path, help="take the report of this one")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs/report.png", help="the .png file to write")
    arguments = parser.parse_args()
    if (arguments.data is None) == (arguments.bundle is None):
        parser.error("give --data or --bundle")
    with tempfile.TemporaryDirectory() as place:
        bundle = arguments.bundle or _ship(arguments.data, Path(place))
        photograph(bundle / "report.html", arguments.out)
    print(f"wrote {arguments.out}")


def photograph(page: Path, picture: Path) -> None:
    """Write what a browser shows of the top of a page, as a .png file.

    Raises:
        FileNotFoundError: There is no Chromium or Chrome on the path.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"no browser on the path; expected one of {', '.join(_BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", f"--screenshot={picture}", f"--window-size={_WIDTH},{_HEIGHT}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)


def _ship(data: Path, place: Path) -> Path:
    """The command of the README, on the real network; return its bundle."""
    from pruneport.commands import ShipConfig, ship
    from pruneport.commands.terminal.display import Display

    data = data.resolve()
    config = ShipConfig(
        source="tests/real/networks.py:resnet56",  # the report shows it as it is given
        checkpoint=data / "weights/cifar10_resnet56.th",
        input_shape=(3, 32, 32),
        flops=0.6,
        calibration=data / "data/tasks/cifar10/train",
        images=data / "data/tasks/cifar10/test",
        out=place / "bundle",
    )
    with contextlib.chdir(_ROOT), Display(Console(stderr=True, highlight=False), "shipping ResNet-56") as display:
        ship(config, display, command="python bench/experiments/picture.py")
    return config.out


if __name__ == "__main__":
    main()
