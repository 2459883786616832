"""What Alembic runs: every migration on the connection, and in the transaction, that the caller brought."""

from __future__ import annotations

from alembic import context

from cloister.broker.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
