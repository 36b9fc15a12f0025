"""docs/logging.md names the fields that a line of JSON has."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from multicore_server.arbiter.logs import fields_of
from multicore_server.fleet.events import Event
from multicore_server.logs import JsonFormatter, json_lines
from multicore_server.logs.requests import of_atoms

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/logging.md").read_text()


def test_every_field_is_in_the_table() -> None:
    table = TEXT.partition("| field | in | meaning |\n")[2].partition("| any other |")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    atoms = {
        "h": "a",
        "u": "b",
        "m": "c",
        "H": "d",
        "f": "e",
        "a": "f",
        "r": "GET /?q H",
        "s": "1",
        "B": 1,
        "D": 1,
    }
    about = fields_of(Event("exited", "text", "error", "signal", 1, 4, 77))
    assert named == json_lines._OURS | of_atoms(atoms).keys() | about.keys()


def test_the_example_is_a_line() -> None:
    example = json.loads(TEXT.partition("```json\n")[2].partition("\n```")[0])
    line = json.loads(JsonFormatter().format(logging.makeLogRecord({"name": "gunicorn.access"})))
    assert list(example)[: len(line)] == list(line)


def test_a_text_is_cut_where_the_docs_say() -> None:
    assert f"more than {json_lines.LONGEST} characters" in TEXT


def test_the_page_is_found() -> None:
    assert "(docs/logging.md)" in (ROOT / "README.md").read_text()
