"""The console in a real browser: what people see and do, by keyboard too, and what they may not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.access.tokens import create_token
from serving.config import AccessConfig
from serving.errors import SideFailed
from tests.serving.api_kit import NAMES, NLVR, PASSAGES, RTE, SST2, TOPICS, Parlour
from tests.serving.console.browser import Browser
from tests.serving.images.kit import picture

pytestmark = pytest.mark.slow

PAGES = {"#/tasks": ".list tbody tr", "#/tasks/sst2": ".history li", "#/playground": ".answer", "#/server": ".facts"}
"""Each page, and what is there once it is whole."""
NARROW = 360


def faults_of(page: Any) -> list[str]:
    """What axe finds on the page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{fault['id']}: {node['html'][:120]}" for fault in found for node in fault["nodes"]]


def visit(page: Any, path: str) -> None:
    page.evaluate("path => { location.hash = path }", path)
    page.wait_for_selector(f"nav a[aria-current][data-page={path.split('/')[1].split('?')[0]}]")
    page.wait_for_selector("h1")


def run(page: Any, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".results[aria-busy=false] .answer")
    page.wait_for_selector(".timing")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_narrow_window(browser: Browser, console: str, scheme: str) -> None:
    def look(page: Any) -> None:
        for path, content in PAGES.items():
            visit(page, path)
            if path == "#/playground":
                run(page, "Ada lives in Rome")
            page.wait_for_selector(content)
            assert faults_of(page) == [], path
            page.set_viewport_size({"width": NARROW, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") == NARROW, path
            assert scheme == "dark" or faults_of(page) == [], path
            page.set_viewport_size({"width": 1280, "height": 800})

    browser.browse(console, look, color_scheme=scheme)


def test_texts_from_outside_stay_texts(browser: Browser, console: str) -> None:
    def look(page: Any) -> None:
        page.wait_for_selector("text=<img src=x onerror")
        visit(page, "#/tasks/sst2")
        page.wait_for_selector("text=<img src=x onerror")
        visit(page, "#/playground?task=cola")
        run(page, "<script>document.title = 'taken'</script>")
        page.wait_for_selector("text=<b>unacceptable</b>")
        assert page.locator("main b, main script, main img").count() == 0
        assert "taken" not in page.title()

    browser.browse(console, look)


def test_the_playground_asks_many_tasks_and_two_versions(browser: Browser, console: str) -> None:
    def play(page: Any) -> None:
        visit(page, "#/playground?task=cola&task=names&task=sst2&task=titles")
        page.locator('[data-key="compare sst2"]').click()
        run(page, "a text that no other test asks")
        cards = page.locator("article")
        page.wait_for_selector("article[aria-label=titles] .small")
        assert cards.count() == 5
        versions = page.locator("article[aria-label=sst2] .badge:text-matches('^v')").all_inner_texts()
        assert sorted(versions) == ["v1", "v2"]
        assert page.locator("article[aria-label=sst2] .bar").count() == 4
        assert page.locator("article[aria-label=titles] .made:not(.writing)").count() == 1
        assert page.locator(".lane").first.locator(".sliver").count() == 4
        assert page.locator(".lane").first.locator(".backbone").count() == 1
        assert "one pass" in page.locator(".legend").first.inner_text()
        python = page.locator("pre").inner_text()
        assert 'client.predict_tasks(\n        ["cola", "names", "sst2", "sst2:2", "titles"]' in python
        page.get_by_role("tab", name="curl", exact=True).press("ArrowRight")
        assert "sidecast.v1.Sidecast/PredictTasks" in page.locator("pre").inner_text()

    browser.browse(console, play)


def test_the_playground_draws_several_labels_relevance_entities_and_an_error(browser: Browser, tmp_path: Path) -> None:
    values = {"query": "film", "passage": "a film", "sentence": "x" * 45, "text": "\U0001f600 Ada met bob"}

    def play(page: Any) -> None:
        visit(page, "#/playground?task=names&task=passages&task=sst2&task=topics")
        for field, value in values.items():
            page.locator(f"#field-{field}").fill(value)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".results[aria-busy=false] .answer")
        topics, passages, names, sst2 = (
            page.locator(f"article[aria-label={task}]") for task in ("topics", "passages", "names", "sst2")
        )
        assert topics.locator(".verdict").inner_text() == "art, war"
        lines = [line.get_attribute("style") for line in topics.locator(".bar .threshold").all()]
        assert lines == ["left: 30%;", "left: 50%;", "left: 50%;"]
        assert topics.locator(".bar.best .bar-label").all_inner_texts() == ["art", "war"]
        assert passages.locator(".verdict").inner_text() == "13\u00a0%"
        assert names.locator("mark").all_text_contents() == ["AdaPER"]
        assert "the side network of sst2:1 failed" in sst2.locator(".fault").inner_text()
        assert faults_of(page) == []

    kept = Parlour(tmp_path, [SST2, NAMES, PASSAGES], http_port=None)
    kept.publish(TOPICS, thresholds={"art": 0.3})
    kept.service.trouble["sst2"] = SideFailed("sst2", 1, "a test")
    with kept.open() as parlour:
        browser.browse(f"http://127.0.0.1:{parlour.server.http_port}/", play)


PASTE = """file => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(file.bytes)], "pasted.png", { type: "image/png" }));
    document.querySelector("form.ask").dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
}"""


def test_pictures_are_chosen_or_pasted_and_stand_side_by_side(browser: Browser, tmp_path: Path) -> None:
    pictures = [picture(colour) for colour in (40, 200)]

    def play(page: Any) -> None:
        visit(page, "#/playground?task=nlvr")
        page.locator("#image-left").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": pictures[0]})
        page.evaluate(PASTE, {"bytes": list(pictures[1])})
        left, right = (box.bounding_box() for box in page.locator(".picture img").all())
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]
        page.locator("#field-sentence").fill("the second is bright")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("article[aria-label=nlvr] .verdict")
        assert '"left": Path("a.png"), "right": Path("pasted.png")' in page.locator("pre").inner_text()
        assert faults_of(page) == []

    with Parlour(tmp_path, [NLVR], http_port=None).open() as parlour:
        browser.browse(f"http://127.0.0.1:{parlour.server.http_port}/", play)
        [[row]] = parlour.service.rows
        assert row == {"sentence": "the second is bright", "left": pictures[0], "right": pictures[1]}


def test_a_version_is_promoted_shadowed_and_rolled_back_by_keyboard(browser: Browser, console: str) -> None:
    def routes() -> Any:
        return requests.get(f"{console}v1/tasks/sst2", timeout=10).json()["routes"]["production"]

    def confirm(page: Any, button: str, said: str) -> None:
        page.get_by_role("button", name=button, exact=True).first.press("Enter")
        page.wait_for_selector("dialog[open]")
        page.get_by_label("Reason (optional)").fill("a test")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"text={said}")
        page.wait_for_selector("dialog", state="detached")

    def change(page: Any) -> None:
        visit(page, "#/tasks/sst2")
        confirm(page, "Shadow", "Started the shadow of version 2")
        assert routes()["shadows"] == [2]
        page.wait_for_selector("text=Inputs on which they differ")
        confirm(page, "Canary", "Version 2 gets 5 %")
        assert routes()["shares"] == [{"version": 2, "share": 500}]
        confirm(page, "End the canary", "The canary of sst2@production is ended")
        confirm(page, "Promote", "sst2@production is version 2")
        assert routes()["version"] == 2
        confirm(page, "Roll back…", "sst2@production is version 1 again")
        page.wait_for_selector("text=@production rolled back to version 1")
        page.get_by_role("button", name="Retire", exact=True).press("Enter")
        page.get_by_role("button", name="Retire version 2").press("Enter")
        page.wait_for_selector("dialog >> text=Type sst2 to confirm.")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")

    browser.browse(console, change)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "does not have the scope publish:sst2"),
        ({"admin_port": 0}, "This port takes no changes"),
    ],
)
def test_who_may_not_change_is_told_so(browser: Browser, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    file = tmp_path / "tokens.toml"
    token = create_token(file, name="reader", scopes=["read", "predict:rte"])
    access = AccessConfig(tokens=str(file), **more)
    with Parlour(tmp_path, [SST2, RTE], access=access, http_port=None).open() as parlour:
        browser.browse(f"http://127.0.0.1:{parlour.server.http_port}/", sign_in(token, says))


def sign_in(token: str, says: str) -> Callable[[Any], None]:
    def journey(page: Any) -> None:
        page.get_by_label("Token").fill("sc_wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]")
        assert faults_of(page) == []
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.wait_for_selector("h1 >> text=Tasks")
        visit(page, "#/tasks/sst2")
        page.wait_for_selector(f"text={says}")
        assert page.get_by_role("button", name="Roll back…").is_disabled()
        visit(page, "#/playground")
        assert page.locator('[data-key="pick sst2"]').is_disabled()
        assert token not in page.content()
        assert page.evaluate("sessionStorage.length") == 1
        assert page.evaluate("localStorage.length") == 0
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("h1 >> text=Who are you?")

    return journey
