"""docs/switching.md has what the code says of gunicorn's settings."""

from __future__ import annotations

from pathlib import Path

from multicore_server.settings.gunicorn import reference

ROOT = Path(__file__).parents[2]


def test_the_docs_have_the_settings_without_effect() -> None:
    text = (ROOT / "docs/switching.md").read_text()
    begin, end = (
        "<!-- no effect: multicore_server.settings.gunicorn.reference() -->\n",
        "\n<!-- end of no effect -->",
    )
    assert text.partition(begin)[2].partition(end)[0] == reference()


def test_the_page_is_found() -> None:
    assert "(docs/switching.md)" in (ROOT / "README.md").read_text()
