"""Hooks of mkdocs: the site has the READMEs, the tutorial and every file that a page links to.

Pages lie in the site as in the repository, but for ``docs/``, which is its root; the README is the
home page. Links are written as they work in the repository, and turned into those of the site.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "tutorial.ipynb"
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):(<code>)~?")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let a folder in the navigation stand for all pages in it."""
    for section in config.nav or []:
        for title, entry in section.items():
            if isinstance(entry, str) and entry.endswith("/"):
                section[title] = pages_below(entry)
    return config


def pages_below(folder: str) -> list[str]:
    """The pages of a folder of the site, in order."""
    files = (*(ROOT / "docs" / folder).glob("*.md"), *(ROOT / folder).glob("*/README.md"))
    return sorted(site_path(file.relative_to(ROOT).as_posix()) for file in files)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs, the tutorial with its pictures, and what the pages link to."""
    for readme in (ROOT / "README.md", *sorted(ROOT.glob("projects/*/README.md"))):
        add(files, config, readme)
    body, resources = MarkdownExporter().from_filename(str(ROOT / "docs" / NOTEBOOK))
    pictures = {f"tutorial_files/{name}": data for name, data in resources["outputs"].items()}
    for name in pictures:
        body = body.replace(f"({posixpath.basename(name)})", f"({name})")
    note = f"This page is the notebook [docs/{NOTEBOOK}]({NOTEBOOK}).\n\n"
    heading, _, rest = body.lstrip().partition("\n")
    for name, content in {"tutorial.md": f"{heading}\n\n{note}{rest}", **pictures}.items():
        files.append(File.generated(config, name, content=content))
    for page in list(files.documentation_pages()):
        for target, _ in _LINK.findall(page.content_string):
            linked = ROOT / repository_path(page.src_uri, target)
            if linked.is_file() and files.get_file_from_path(site_path_of(linked)) is None:
                add(files, config, linked)
    return files


def add(files: Files, config: MkDocsConfig, path: Path) -> None:
    """Add a file of the repository to the site."""
    files.append(File.generated(config, site_path_of(path), abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the repository into links of the site."""

    def turned(match: re.Match[str]) -> str:
        target = site_path(repository_path(page.file.src_uri, match[1]))
        folder = posixpath.dirname(page.file.src_uri) or "."
        return f"]({posixpath.relpath(target, folder)}{match[2] or ''})"

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Leave out the roles of references in docstrings, like ``:func:``."""
    return _ROLE.sub(r"\1", html)


def site_path_of(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    return site_path(path.relative_to(ROOT).as_posix())


def site_path(path: str) -> str:
    """From the repository to the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def repository_path(page: str, target: str) -> str:
    """What a link of a page of the site means, as a path in the repository."""
    if page == "index.md":
        place = "README.md"
    else:
        place = page if (ROOT / page).is_file() else f"docs/{page}"
    return os.path.normpath(posixpath.join(posixpath.dirname(place), target))
