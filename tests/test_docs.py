"""Tests of the site that `make docs` builds."""

import html.parser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import REPOSITORY

import crest_jax

needs_mkdocs = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("material", "mkdocs_jupyter", "mkdocstrings"))),
    reason="the packages of pip install '.[docs]' are not installed",
)


class Page(html.parser.HTMLParser):
    """The ids and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.links |= {attrs[name] for name in ("href", "src") if attrs.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    done = subprocess.run(command, cwd=str(REPOSITORY), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in folder.glob("**/*.html") if path.name != "404.html"}


@needs_mkdocs
def test_links_lead_to_something(site):
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / parts.path)) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[target].ids, (path, link)


@needs_mkdocs
def test_the_reference_has_what_the_package_shows(site):
    ids = {name for page in site.values() for name in page.ids if name}
    for name in set(crest_jax.__all__) - {"__version__"}:
        assert {f"crest_jax.{name}", f"crest_jax.errors.{name}"} & ids
    fields = {"algorithms.StepInputs.refine", "rebalancing.Rebalancing.class_weights"}
    assert {f"crest_jax.{name}" for name in fields} <= ids
