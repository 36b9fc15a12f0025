"""``multicore-server trigger``: calls an action of the app in its workers. PM2: ``pm2 trigger``."""

from __future__ import annotations

import json
import sys

import click

from multicore_server.cli.arguments import answer_timeout, choosing, instances_of, is_number
from multicore_server.cli.servers import Trouble, choose
from multicore_server.cli.text import plain
from multicore_server.ipc.report import ActionAnswer


@click.command()
@click.argument("name", required=False)
@click.argument("instances", nargs=-1, metavar="[INSTANCE]...")
@click.option("-s", "--server", help="Name, port or pid of the server. Leave it out if only one server runs.")
@click.option(
    "--json",
    "given",
    metavar="ARGS",
    help="Arguments: an object gives them by name, a list by position; any other value is the only argument.",
)
@click.option(
    "--timeout", metavar="TIME", default="10", help="Time for each worker to answer; 10 s by default."
)
def trigger(
    name: str | None, instances: tuple[str, ...], server: str | None, given: str | None, timeout: str
) -> None:
    """Call an action in all workers, or in the workers of some instances, and print the answers.

    Without NAME, list the actions. Built in: gc, memory, stacks, tracemalloc (start, top, stop).
    The exit status is 1 if the action fails in a worker.
    """
    if server is None and len(instances) == 1 and not is_number(instances[0]):  # as in PM2
        other_way = f"for a server {name!r}: trigger {instances[0]} -s {name}"
        raise Trouble(f"trigger: {instances[0]!r} is not an instance number; `ps` shows them; {other_way}")
    numbers = instances_of("trigger", instances)
    with choosing(numbers):
        chosen = choose(server)
    answers = chosen.act(name, numbers, _arguments(given), answer_timeout(timeout))
    if name is None:
        _list(answers)
    else:
        for answer in answers:
            click.echo(f"instance {answer['instance']}: {_shown(answer)}", err=not answer["ok"])
    if not answers:
        raise Trouble("trigger: no worker is running")
    if not all(answer["ok"] for answer in answers):
        sys.exit(1)


def _arguments(given: str | None) -> object:
    try:
        return None if given is None else json.loads(given)
    except (ValueError, RecursionError) as exc:
        raise Trouble(f"--json: {given!r} is not JSON: {exc}") from None


def _shown(answer: ActionAnswer) -> str:
    return plain(json.dumps(answer["value"], ensure_ascii=False) if answer["ok"] else answer["error"])


def _list(answers: list[ActionAnswer]) -> None:
    """Print each name, with its instances if not all have it."""
    having: dict[str, list[int]] = {}
    for answer in answers:
        for name in answer["value"] if isinstance(answer["value"], list) else ():
            having.setdefault(str(name), []).append(answer["instance"])
        if not answer["ok"]:
            click.echo(f"instance {answer['instance']}: {_shown(answer)}", err=True)
    for name, instances in sorted(having.items()):
        some = "" if len(instances) == len(answers) else f"  (instances {', '.join(map(str, instances))})"
        click.echo(plain(name) + some)
