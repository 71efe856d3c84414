"""Run by alembic inside `database.migrate`, on the connection given there."""

from __future__ import annotations

from alembic import context

from aiflow_router.storage.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite changes a table by making it anew.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
