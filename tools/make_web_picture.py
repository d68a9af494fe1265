"""Take the picture of the web page in the documentation, docs/assets/web.png.

It runs tools/web_demo.py, clicks, and looks with Debian's chromium; needs gradio, playwright and
the panoptic model of make demo. Options that it does not know are for tools/web_demo.py.

Example:
    python tools/make_web_picture.py
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError, InstallationError
from densedet.files import atomic_path, writing

if TYPE_CHECKING:
    from PIL import Image

TOOL = Path(__file__).with_name("web_demo.py")
WIDTH, HEIGHT = 1_100, 1_000  # pixels of the window
SHOWN = 800  # pixels of the picture's width
COLOURS = 128
PATIENCE = 120_000  # milliseconds


@contextmanager
def served(arguments: list[str]) -> Iterator[str]:
    """The address of the page, as long as it is needed.

    Args:
        arguments: for tools/web_demo.py.

    Raises:
        ConfigError: the page cannot be served; the tool has said why.
    """
    command = [sys.executable, str(TOOL), "--device", "cpu", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise ConfigError(f"{TOOL.name} has ended; mend what it says")
            yield line.partition(" ")[0]
        finally:
            process.terminate()


def take(url: str, chromium: str) -> "Image.Image":
    """Click, and wait for what is found in the first example."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.get_by_role("button", name="Find").click()
        page.locator("#found img").wait_for()
        page.get_by_role("gridcell").first.wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1_000)  # until nothing moves any more
        taken = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    return taken


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/assets/web.png"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args, others = build_parser().parse_known_args(argv)
    from PIL import Image

    chromium = shutil.which("chromium")
    if chromium is None:
        raise InstallationError("no chromium here; on Debian: apt-get install chromium")
    with served(others) as url:
        taken = take(url, chromium)
    small = taken.convert("RGB").resize(
        (SHOWN, round(SHOWN * taken.height / taken.width)), Image.Resampling.LANCZOS
    )
    with atomic_path(args.output) as path, writing(args.output):
        small.quantize(COLOURS).save(path, optimize=True)
    print(args.output)
    return 0


if __name__ == "__main__":
    run_tool(main)
