"""The picture in README: a prompt side by side and under the token microscope, from a report.

    python -m benchmarks.screenshot runs/seed0/report.html --prompt test-00829 --out docs/report.png

Needs Chromium or Chrome.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from rlhf_mini.core.console import UserError, console, run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH = 1080  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshot", description=__doc__.split("\n")[0])
    parser.add_argument("report", type=Path, help="what `make report` wrote")
    parser.add_argument("--prompt", required=True, help="id of the prompt to show, one that is in the microscope")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"), help="file to write")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError("there is no Chromium or Chrome: install one")
    with sync_playwright() as started:
        page = started.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": WIDTH, "height": 2400}, color_scheme="light"
        )
        page.goto(f"{arguments.report.resolve().as_uri()}#prompt={arguments.prompt}")
        if page.locator(".answer.ppo button").count() == 0:
            raise UserError(f"{arguments.prompt} is not in the microscope of {arguments.report}: choose another prompt")
        page.locator(".answer.ppo button").click()
        top, bottom = (  # boxes are measured from the top of the window, the picture from that of the page
            box.bounding_box() for box in (page.locator("#shown"), page.locator("#microscope"))
        )
        assert top and bottom
        start, height = top["y"] + page.evaluate("scrollY"), bottom["y"] + bottom["height"] - top["y"]
        page.screenshot(
            path=arguments.out, full_page=True, clip={"x": 0, "y": start, "width": WIDTH, "height": height}
        )  # fmt: skip
    console.print(f"{arguments.out} written", soft_wrap=True)


if __name__ == "__main__":
    run(main)
