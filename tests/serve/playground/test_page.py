"""The page's files over HTTP; what they do in a browser is in test_playground.py."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from serve.playground.page import CONTENT_TYPES


def test_files_are_served_with_their_types_and_a_strict_policy(call):
    page = call("GET", "/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text):
        file = call("GET", f"/{path}")
        assert file.status_code == 200
        assert file.headers["content-type"] == CONTENT_TYPES[path.rpartition(".")[2]]
        assert file.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.text
    assert "style=" not in page.text


def test_an_unchanged_file_is_not_sent_again(call):
    etag = call("GET", "/").headers["etag"]
    again = call("GET", "/", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert call("GET", "/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert call("HEAD", "/").headers["etag"] == etag


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py"])
def test_only_the_pages_own_files_are_served(call, name):
    answer = call("GET", f"/static/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_the_page_is_packaged_and_not_in_the_api_document(call):
    names = [
        entry.name for entry in resources.files("serve.playground").joinpath("static").iterdir()
    ]
    assert {name.rpartition(".")[2] for name in names} <= set(CONTENT_TYPES)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["serve.playground"] == ["static/*"]
    paths = call("GET", "/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/static")]
