"""``multicore-server stacks``: what the threads and tasks of a server's workers are doing now."""

from __future__ import annotations

import json
import sys

import click

from multicore_server.cli.arguments import answer_timeout, server_and_instances
from multicore_server.cli.servers import Trouble, choose
from multicore_server.cli.text import plain
from multicore_server.ipc.report import ActionAnswer


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER] [INSTANCE]...")
@click.option("-s", "--server", help="The server's name, port or pid; then every argument is an instance.")
@click.option("--tasks", is_flag=True, help="Each asyncio task too, with what it waits for.")
@click.option("--timeout", metavar="TIME", default="3", help="For the answer of each worker; 3 s.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stacks(arguments: tuple[str, ...], server: str | None, tasks: bool, timeout: str, as_json: bool) -> None:
    """Show the stack of every thread of all workers, or of those of some instances, the innermost line last.

    The workers go on meanwhile. One whose event loop is blocked answers, too, within a fraction of a second;
    one that runs C code that keeps Python's lock does not. Exit status 1 when a worker does not answer.
    """
    server, numbers = server_and_instances("stacks", arguments, server)
    answers = choose(server).act("stacks", numbers, {"tasks": tasks}, answer_timeout(timeout))
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    else:
        for answer in answers:
            _print(answer)
    if not answers:
        raise Trouble("stacks: no worker runs")
    if not all(answer["ok"] for answer in answers):
        sys.exit(1)


def _print(answer: ActionAnswer) -> None:
    who, value = f"instance {answer['instance']}", answer["value"]
    if not answer["ok"] or not isinstance(value, dict):
        click.echo(f"{who}: {plain(answer['error'])}", err=True)
        return
    for kind in ("threads", "tasks"):
        for stack in value.get(kind) or ():
            click.echo(f"{who}, {kind[:-1]} {plain(stack['name'])}")
            for line in stack["lines"]:
                click.echo(f"  {plain(line)}")
    if value.get("left_out"):
        click.echo(f"{who}: {value['left_out']} more")
