"""An MCP server over streamable HTTP, with one tool."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("tests")


@server.tool()
async def add(a: int, b: int) -> int:
    return a + b


app = server.streamable_http_app()
