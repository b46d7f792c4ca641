"""The console's files: small, whole, and nothing in them that a strict policy forbids."""

import re
from pathlib import Path

from serving.console import assets
from tests.serving.api_kit import SST2, Parlour
from tests.serving.http_api.kit import Asker

MAX_BYTES = 110_000
UNSAFE = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser")


def test_they_are_small_and_name_only_each_other() -> None:
    files = assets()
    assert sum(len(asset.content) for asset in files.values()) < MAX_BYTES
    for name, asset in files.items():
        text = asset.content.decode()
        references = re.findall(r'(?:src|href)="(?!#)([^"]+)"', text) if name.endswith(".html") else []
        imports = re.findall(r'from "\./([^"]+)"', text)
        assert {reference.removeprefix("console/") for reference in references} | set(imports) <= files.keys(), name
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name


def test_no_text_becomes_a_page_or_a_program() -> None:
    files = assets()
    for name, asset in files.items():
        assert not [word for word in UNSAFE if word in asset.content.decode()], name
    page = files["index.html"].content.decode()
    assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=", page)


def test_they_come_with_a_strict_policy_and_once(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2], http_port=None).open() as parlour:
        ask = Asker(parlour)
        page = ask("GET", "/")
        policy = page.headers["Content-Security-Policy"]
        assert page.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name, asset in assets().items():
            found = ask("GET", f"/console/{name}" if name != "index.html" else "/")
            assert (found.status_code, found.content) == (200, asset.content)
            assert ask("GET", found.request.path_url, If_None_Match=found.headers["ETag"]).status_code == 304
        assert ask("GET", "/console/nothing.js").status_code == 404
        assert "/console/app.js" not in ask.get("/openapi.json")["paths"]
        ask.close()
