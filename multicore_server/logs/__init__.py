"""Log lines: where they come from, and their form as JSON. Pure.

`JsonFormatter` is for log configurations of users, too: ``"()": "multicore_server.logs.JsonFormatter"``.
"""

from multicore_server.logs.json_lines import JsonFormatter

__all__ = ["JsonFormatter"]
