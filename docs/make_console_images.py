"""Takes the pictures of docs/images/console/: `python docs/make_console_images.py http://127.0.0.1:8000`.

The server should have a task `sst2` and some traffic. Needs Chromium, the package playwright, and Pillow.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.serving.console.chromium import find

FOLDER = Path(__file__).resolve().parent / "images" / "console"
PAGES = {
    "tasks": "#/tasks",
    "task": "#/tasks/sst2",
    "playground": "#/playground?task=sst2&task=verdict&task=entities&task=cola",
    "server": "#/server",
}
LOOKS: dict[str, tuple[int, Any]] = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (360, "light")}
TEXTS = {
    "light": "Marie Curie is played by Emma Stone , who gives a warm and moving performance in Lisbon",
    "dark": "Akira Kurosawa shot it in Vienna , and it is a warm , funny and moving film",
    "narrow": "a warm and funny portrait of Ada Lovelace , set in London",
}
MAX_HEIGHT = {1280: 1400, 360: 1500}
FEED_S = 12.0
"""How long a page gathers figures."""


def take(page: Any, url: str, name: str, look: str) -> None:
    """Take one picture."""
    width, _ = LOOKS[look]
    page.goto("about:blank")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{url.rstrip('/')}/{PAGES[name]}")
    page.wait_for_selector("h1")
    if name == "playground":
        page.wait_for_selector('[data-key="compare sst2"]')
        page.locator('[data-key="compare sst2"]').click()
        page.get_by_label("Text", exact=True).fill(TEXTS[look])
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector(".results[aria-busy=false] .answer")
        page.wait_for_selector(".timing >> nth=1")
        page.evaluate("document.activeElement.blur()")
    else:
        page.wait_for_timeout(FEED_S * 1000)
    height = min(page.evaluate("document.querySelector('main').offsetHeight + 100"), MAX_HEIGHT[width])
    page.set_viewport_size({"width": width, "height": max(height, 600)})
    page.wait_for_timeout(300)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
        FOLDER / f"{name}-{look}.png", optimize=True
    )


def main(url: str, names: list[str]) -> None:
    """Take the pictures of some pages in every look."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = find()
    if path is None:
        sys.exit("there is no Chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for look, (_, scheme) in LOOKS.items():
            context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
            page = context.new_page()
            for name in names or PAGES:
                take(page, url, name, look)
            context.close()
        browser.close()
    print(sum(file.stat().st_size for file in FOLDER.iterdir()), "bytes in", FOLDER)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
