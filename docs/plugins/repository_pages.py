"""Pages of the site that are not in docs/: the README and its like, and linked source files.

Pages link to other files of the repository by relative paths, which work wherever the repository is
browsed. On the site, such a link leads to a page with the file.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
}
_ORIGINS = {page: path for path, page in PAGES.items()}
_LANGUAGES = {".py": "python", ".sh": "bash", "": "docker"}
_LINK = re.compile(r"(?<=\]\()(?P<path>[\w./-]+)(?P<anchor>#[\w-]+)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    linked = {
        target
        for page in files.documentation_pages()
        if page.src_uri.endswith(".md")
        for target in _targets(page)
        if not target.is_relative_to(DOCS) and target not in PAGES
    }
    for target in sorted(linked):
        files.append(File.generated(config, _page_of(target), content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to files of the repository lead to their pages."""
    here = PurePosixPath(page.file.src_uri).parent

    def on_the_site(link: re.Match) -> str:
        target = _target(page.file, link["path"])
        if target is None:
            return link[0]
        return os.path.relpath(_page_of(target), here) + (link["anchor"] or "")

    return _LINK.sub(on_the_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a notebook's page with links to pages, which MkDocs adapts in Markdown only."""
    if page.file.src_uri.endswith(".ipynb"):
        return re.sub(r'(?<=href=")([\w./-]+)\.md(?=[#"])', r"\1.html", html)
    return html


def _targets(page: File) -> Iterator[Path]:
    for link in _LINK.finditer(page.content_string):
        target = _target(page, link["path"])
        if target is not None:
            yield target


def _target(page: File, link: str) -> Path | None:
    """Return the file of the repository that a link of a page means, or None if there is none."""
    origin = _ORIGINS.get(page.src_uri, DOCS / page.src_uri)
    target = Path(os.path.normpath(origin.parent / link))
    for name in ("README.md", "__init__.py"):
        if (target / name).is_file():
            target /= name
    return target if target.is_file() else None


def _page_of(target: Path) -> str:
    """Return the path, within the site's sources, of a file's page."""
    if target in PAGES:
        return PAGES[target]
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"code/{target.relative_to(ROOT).as_posix()}.md"


def _shown(target: Path) -> str:
    """Return a page with a file's text."""
    name, text = target.relative_to(ROOT).as_posix(), target.read_text(encoding="utf-8")
    fence = "`" * 8
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n"
    return f"{head}\n{fence}{_LANGUAGES[target.suffix]}\n{text}{fence}\n"
