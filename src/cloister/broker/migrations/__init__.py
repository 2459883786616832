"""Alembic's migrations of the broker's database: run by :func:`cloister.broker.tables.migrate` alone."""
