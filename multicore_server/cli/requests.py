"""``multicore-server requests``: lists the requests in progress of a server's workers."""

from __future__ import annotations

import json

import click

from multicore_server.cli import table
from multicore_server.cli.arguments import check_instances, choosing, server_and_instances
from multicore_server.cli.in_progress import Running, in_progress, running
from multicore_server.cli.servers import choose
from multicore_server.cli.table import Cell, Column
from multicore_server.cli.text import milliseconds, plain

COLUMNS = (
    Column("age", right=True), Column("id", right=True), Column("method", most=16),
    Column("path", most=120), Column("client", drop=1, most=48),
)  # fmt: skip


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER] [INSTANCE]...")
@click.option("-s", "--server", help="Name, port or pid of the server; all arguments are then instances.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def requests(arguments: tuple[str, ...], server: str | None, as_json: bool) -> None:
    """List the requests in progress, the oldest first, of all workers or of some instances.

    A number is an INSTANCE, as `ps` shows it. A name before it is the server. A worker notes up to 32 of its
    requests. If it has more, a line says how many.
    """
    server, wanted = server_and_instances("requests", arguments, server)
    with choosing(wanted):
        status = choose(server).status()
    check_instances("requests", wanted, status)
    found = running(status, wanted)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [[Cell(text) for text in _texts(it)] for it in found]
    for line in table.lines(COLUMNS, rows, room=table.room(), color=table.in_color()):
        click.echo(line)
    if (more := in_progress(status, wanted) - len(found)) > 0:
        click.echo(f"and {more} more")


def _texts(request: Running) -> tuple[str, ...]:
    age, instance = milliseconds(request["seconds"]), str(request["instance"])
    return age, instance, *map(plain, (request["method"], request["path"], request["client"] or "-"))
