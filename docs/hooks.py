"""MkDocs hooks: add generated pages, and make the repository's relative links work in the site.

README.md, CHANGELOG.md, CONTRIBUTING.md and benchmarks/results/*.md are outside docs/; the hooks
add them as pages. Links to other files of the repository, such as a notebook or a module, lead to
copies of them under files/. All pages can therefore use relative links, which also work on a code
host.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import generate_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
# Pages that come from files outside docs/: path in the site -> path in the repository.
OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
} | {f"measurements/{file.name}": f"benchmarks/results/{file.name}" for file in RESULTS}
PAGE_OF = {source: page for page, source in OUTSIDE.items()}
# Omitted from the navigation if the file does not exist; links then lead to the API reference.
OPTIONAL = {"library.md"}

FENCE = re.compile(r"(^ *(?P<fence>`{3,})[^\n]*\n.*?^ *(?P=fence) *$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)")
PICTURE = re.compile(r"<picture>(.*?)</picture>", re.DOTALL)
DARK = re.compile(r'<source [^>]*prefers-color-scheme: dark[^>]*srcset="([^"]+)"')
LIGHT = re.compile(r'<img [^>]*src="([^"]+)"')
ALT = re.compile(r'alt="([^"]*)"')
IMAGE = re.compile(r'(<a [^>]*>\s*)?<img [^>]*src="([^"]+)"[^>]*>')

_reference: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Generate the reference and complete the navigation."""
    _reference.update(generate_reference.pages())
    config.nav = _complete(config.nav, config)
    config.watch.append(str(ROOT / "sam2kit"))
    return config


def _complete(entries: Any, config: MkDocsConfig) -> list[Any]:
    """Return navigation entries with placeholders replaced and missing optional pages omitted."""
    api = [path for path in _reference if path.startswith("reference/api/")]
    lists = {
        "API_PAGES": api,
        "MEASUREMENTS": [f"measurements/{file.name}" for file in RESULTS],
    }
    result = []
    for entry in entries:
        ((title, value),) = entry.items()
        if isinstance(value, list):
            value = _complete(value, config)
        elif value in lists:
            value = lists[value]
        elif value in OPTIONAL and not Path(config.docs_dir, value).is_file():
            continue
        result.append({title: value})
    return result


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for path, text in _reference.items():
        files.append(File.generated(config, path, content=text))
    for path, source in OUTSIDE.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the relative links and the pictures of a page for the site."""
    path = page.file.src_uri
    if path == "index.md":  # the navigation of a one-page tab is empty
        page.meta["hide"] = ["navigation"]
    if path in _reference:
        return markdown
    source = OUTSIDE.get(path, f"docs/{path}")

    def rewrite(match: re.Match[str]) -> str:
        return match[1] + _target(match[2], path, source, config, files)

    # FENCE.split yields text, fenced block, fence marker, and so on. Code blocks stay unchanged.
    parts = FENCE.split(PICTURE.sub(_two_pictures, markdown))
    for n in range(0, len(parts), 3):
        parts[n] = LINK.sub(rewrite, parts[n])
        parts[n + 2 : n + 3] = [""] * len(parts[n + 2 : n + 3])  # drop the marker
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link each image to its file, which shows it in full size; site.css makes it scroll."""

    def link(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]
        return f'<a class="picture" href="{match[2]}" title="Full size">{match[0]}</a>'

    return IMAGE.sub(link, html)


def _two_pictures(match: re.Match[str]) -> str:
    """Replace a ``<picture>`` by a light and a dark image; Material's palette selects one."""
    light, dark, alt = LIGHT.search(match[1]), DARK.search(match[1]), ALT.search(match[1])
    assert light and dark, f"a <picture> needs a light and a dark image: {match[0]}"
    text = alt[1] if alt else ""
    return f"![{text}]({light[1]}#only-light)\n![{text}]({dark[1]}#only-dark)"


def _target(link: str, path: str, source: str, config: MkDocsConfig, files: Files) -> str:
    """Return the link from the page ``path`` that replaces ``link`` in the file ``source``."""
    target, hash_, anchor = link.partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return link
    name = os.path.normpath(PurePosixPath(source).parent / target)
    if name in PAGE_OF:
        page = PAGE_OF[name]
    elif name.startswith("docs/"):
        page = name.removeprefix("docs/")
        if page in OPTIONAL and not (ROOT / name).is_file():
            page, hash_, anchor = "reference/api/index.md", "", ""
    elif (ROOT / name).is_file() and not name.startswith(".."):
        page = f"files/{name}"
        if files.get_file_from_path(page) is None:
            copy = File.generated(config, page, abs_src_path=str(ROOT / name))
            files.append(copy)
    else:
        return link  # MkDocs reports the broken link
    return os.path.relpath(page, PurePosixPath(path).parent) + hash_ + anchor
