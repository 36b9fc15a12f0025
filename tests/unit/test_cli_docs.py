"""The docs of the commands have every verb, every key and no setting that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from multicore_server.cli import health
from multicore_server.cli.main import COMMANDS, main
from multicore_server.ipc.names import event_kinds
from multicore_server.settings.table import TABLE

DOCS = Path(__file__).parents[2] / "docs/operating.md"
VERBS = [name for name in COMMANDS if name != "run"]
GUNICORNS = {"graceful_timeout"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_is_in_the_docs(verb: str) -> None:
    text = DOCS.read_text()
    assert re.search(rf"^\| `{verb}\b", text, re.MULTILINE)
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert any(f"`{it}" in text or f"[{it}" in text for it in parameter.opts), parameter.opts


def test_the_settings_that_stand_beside_pm2s_are_ours() -> None:
    page = DOCS.with_name("moving-from-pm2.md").read_text()
    table = page.partition("| PM2's option | ours |")[2].partition("\n\n")[0]
    ours = "".join(row.split("|")[2] for row in table.split("\n")[2:])
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", ours))
    assert len(named) > 8
    assert named - GUNICORNS <= set(TABLE)


def test_the_docs_have_the_rules_of_health() -> None:
    assert health.reference() in DOCS.with_name("monitoring.md").read_text()


def test_the_docs_have_the_kinds_of_events() -> None:
    assert event_kinds() in DOCS.with_name("monitoring.md").read_text()
