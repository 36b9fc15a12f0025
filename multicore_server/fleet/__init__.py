"""Which worker runs where, and what to do next. Pure."""
