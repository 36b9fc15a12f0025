"""Reads the arguments that several verbs have in common."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

import click

from multicore_server.cli.servers import SeveralServersError, Trouble, names
from multicore_server.ipc.report import LONGEST_ACTION, Status

LONGEST = 9  # digits of an instance number


def is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def server_and_instances(
    verb: str, arguments: Sequence[str], server: str | None
) -> tuple[str | None, list[int] | None]:
    """Return the server and the instances in ``[SERVER] [INSTANCE]...``.

    ``server`` is the value of --server. Raises Trouble.
    """
    if server is None and arguments and not is_number(arguments[0]):
        server, *arguments = arguments
    return server, instances_of(verb, arguments)


def instances_of(verb: str, named: Sequence[str]) -> list[int] | None:
    """Return the instances, or None for all if none is named. Raises Trouble."""
    for text in named:
        if not is_number(text) or len(text) > LONGEST:
            raise Trouble(f"{verb}: {text!r} is not an instance number; `ps` shows them")
    return [int(text) for text in named] or None


def servers_and_instances(
    verb: str, arguments: Sequence[str], server: str | None
) -> tuple[list[str], list[int] | None]:
    """What ``[SERVER]... [INSTANCE]...`` names; ``server`` is that of --server. Raises Trouble."""
    if server is not None:
        return [server], instances_of(verb, arguments)
    named = list(takewhile(lambda text: not is_number(text), arguments))
    instances = instances_of(verb, arguments[len(named) :])
    if instances and len(named) > 1:
        raise Trouble(f"{verb}: instances are those of one server, and {len(named)} are named")
    return named, instances


@contextlib.contextmanager
def choosing(instances: Sequence[int] | None) -> Iterator[None]:
    """If several servers run, say that these numbers have named none of them."""
    try:
        yield
    except SeveralServersError as exc:
        if not instances:
            raise
        raise SeveralServersError(f"{exc.message}; {_otherwise(instances[0])}") from None


def check_instances(verb: str, instances: Sequence[int] | None, status: Status) -> None:
    """Raise Trouble for an instance that the server does not have."""
    there = [worker["instance"] for worker in status["workers"]]
    for number in instances or ():
        if number not in there:
            have = ", ".join(map(str, there))
            raise Trouble(f"{verb}: there is no instance {number}; there are {have}; {_otherwise(number)}")


def check_possible(verb: str, instances: Sequence[int] | None, statuses: Sequence[Status]) -> None:
    """Raise Trouble for an instance that none of these servers can have had. Unlike `check_instances`, it
    accepts those that scaling has removed."""
    most = max((status["capacity"] for status in statuses), default=None)
    for number in instances or ():
        if most is not None and number >= most:
            raise Trouble(f"{verb}: there is no instance {number}; {_otherwise(number)}")


def _otherwise(number: int) -> str:
    return f"a number is an instance here, and `-s {number}` names a server by its port or pid"


def number_of(option: str, text: str | None, default: int) -> int:
    """A number of things to be shown. Raises Trouble."""
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise Trouble(f"{option}: {text!r} is not a number from 0 to 999999")
    return int(text)


def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion, with the names of the running servers."""
    return [name for name in names() if name.startswith(incomplete)]


def answer_timeout(text: str) -> float:
    """Return the seconds that workers have to answer. Raises Trouble."""
    seconds = seconds_of("--timeout", text)
    if not 0 < seconds <= LONGEST_ACTION:
        raise Trouble(f"--timeout: {text!r} is not between 0 and {LONGEST_ACTION:g} seconds")
    return seconds


def seconds_of(option: str, text: str) -> float:
    """Return a duration in seconds. Raises Trouble."""
    from multicore_server.settings.quantities import duration  # few verbs have a time

    try:
        return duration(text)
    except ValueError as exc:
        raise Trouble(f"{option}: {text!r} {exc}") from None
