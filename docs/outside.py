"""Hooks of mkdocs: what lies beside docs/ has a page of the site, and relative links to it lead there.

The links are the ones that work in the repository, so the pages read the same in both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "first-steps.md",
    "SECURITY.md": "security-policy.md", "LICENSE": "license.md",
}  # fmt: skip
EXAMPLES = ROOT / "examples"
LANGUAGES = {
    ".py": "python",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".conf": "nginx",
    ".service": "ini",
}
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]*)")


def _shown(path: Path) -> str:
    """A page with a file's content."""
    name = path.relative_to(ROOT).as_posix()
    return f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n````\n"


def _listed(directory: Path) -> str:
    """A page with a directory's files."""
    inside = [path for path in sorted(directory.iterdir()) if path in FILES | DIRECTORIES]
    links = [f"- [{path.name}]({path.name}{'/' * path.is_dir()})" for path in inside]
    return "\n".join([f"# {directory.relative_to(ROOT).as_posix()}", "", *links])


FILES = {path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
DIRECTORIES = {parent for path in FILES for parent in path.parents if parent.is_relative_to(EXAMPLES)}


def _places() -> dict[str, tuple[str, str]]:
    """The pages from beside docs/: the path in the repository, the page's place and its text."""
    pages = {name: (uri, (ROOT / name).read_text()) for name, uri in PAGES.items()}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        pages[name] = (f"{name}.md", _shown(path))
    for path in DIRECTORIES:
        name = path.relative_to(ROOT).as_posix()
        pages[name] = (f"{name}/index.md", _listed(path))
    return pages


PLACES = _places()
SOURCES = {uri: name for name, (uri, _) in PLACES.items()}


def on_files(files: Files, config: Any) -> Files:
    for uri, text in PLACES.values():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    source = SOURCES.get(uri, f"docs/{uri}")
    base = PurePosixPath(source) if uri.endswith("/index.md") else PurePosixPath(source).parent

    def lead(link: re.Match[str]) -> str:
        before, target = link.groups()
        name = os.path.normpath(base / target)
        place = PLACES[name][0] if name in PLACES else name.removeprefix("docs/")
        return before + os.path.relpath(place, PurePosixPath(uri).parent)

    return LINK.sub(lead, markdown)
