"""Makes of README.md what a package index shows: an index has neither the other pages nor the pictures.

Relative links lead into the repository at this version, if `project.urls` has its address as `Source`; else
a link is its text, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?![a-z]+:|#)(?P<target>[^)]*)\)")


class Readme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        source = metadata.get("urls", {}).get("Source")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        shown = for_index(text, source, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": shown}


def for_index(text: str, source: str | None, tag: str) -> str:
    """README.md with links that work elsewhere. ``source`` is the repository's address, such as
    https://github.com/owner/name."""

    def lead(link: re.Match[str]) -> str:
        picture, label, target = link.groups()
        if source:
            return f"{picture}[{label}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/{tag}/{target})"
        return "" if picture else label

    return LINK.sub(lead, text)
