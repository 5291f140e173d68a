"""Prefect's UI in a real browser, as a person sees it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, Route, expect, sync_playwright

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WINDOW = {"width": 1400, "height": 1000}
_PATIENCE_MILLISECONDS = 60_000


def installed_browser() -> str | None:
    """Return the path of a Chromium of this machine, None where there is none."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


class Ui:
    """A window on Prefect's UI at ``url``. Pictures go to the folder ``SCREENSHOTS``, where that is set."""

    def __init__(self, page: Page, *, url: str) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        """Requests to other hosts. A hospital's host has no way out, and nothing of it may leave."""
        self._url = url
        page.set_default_timeout(_PATIENCE_MILLISECONDS)
        # What is expected has a limit of its own: 5 s, which beside other tests is too short.
        expect.set_options(timeout=_PATIENCE_MILLISECONDS)
        page.route("**/*", self._stay)

    def open(self, path: str) -> None:
        self.page.goto(f"{self._url}{path}")

    def field(self, label: str) -> Locator:
        """Return where a person types, in a form of Prefect's, below ``label``."""
        named = self.page.get_by_text(label, exact=True)
        return named.locator("xpath=ancestor::*[.//textarea][1]//textarea")

    def submit(self) -> None:
        """Send a deployment's form, and return when the UI shows the deployment's runs."""
        self.page.get_by_role("button", name="Submit").click()
        self.page.wait_for_url("**?tab=Runs")

    def picture(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def _stay(self, route: Route) -> None:
        if urlsplit(route.request.url).hostname == urlsplit(self._url).hostname:
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()


@contextmanager
def browsing(url: str) -> Iterator[Ui]:
    """Open a window; on the way out, see that it asked no other host for anything."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root, as which tests often run.
        chromium = playwright.chromium.launch(executable_path=installed_browser(), args=["--no-sandbox"])
        try:
            ui = Ui(chromium.new_page(viewport=_WINDOW), url=url)
            yield ui
        finally:
            chromium.close()
    assert ui.elsewhere == []
