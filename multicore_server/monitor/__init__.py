"""The monitor: a separate process that shows what the server does, and takes its operators' commands."""
