"""One headless Chromium on a thread of its own: Playwright's loop must not be that of other tests."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SLOW_MS = 15_000
"""Longest wait for an element: far above what any takes."""
Journey = Callable[[Any], None]
"""What somebody does on a page."""


class Browser:
    """Chromium.

    Args:
        path: of the program.
    """

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="browser")
        self._thread.submit(self._open, path).result()

    def _open(self, path: str) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])

    def browse(self, url: str, journey: Journey, *, width: int = 1280, height: int = 800, **options: Any) -> None:
        """Open a page, do the journey, and fail where the page logged an error.

        Args:
            options: of Playwright's context, such as color_scheme.
        """
        self._thread.submit(self._browse, url, journey, {"width": width, "height": height}, options).result()

    def _browse(self, url: str, journey: Journey, viewport: Any, options: dict[str, Any]) -> None:
        context = self._browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        faults: list[str] = []
        try:
            page = context.new_page()
            page.set_default_timeout(SLOW_MS)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
            page.goto(url)
            journey(page)
        finally:
            context.close()
        expected = [fault for fault in faults if "the server responded with a status of" in fault]
        assert faults == expected

    def close(self) -> None:
        """End Chromium and the thread."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        self._browser.close()
        self._playwright.stop()
