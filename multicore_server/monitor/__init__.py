"""The monitor: a process of its own that shows what the server does, and takes its operators' commands."""
