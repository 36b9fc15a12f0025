"""Alembic runs this file: it has the connection from ``migrate`` in app.py."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
