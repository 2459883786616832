"""Documents kept in a PostgreSQL server with pgvector, inside the mesh, for those who outgrow the index in memory.

Specification: docs/spec/knowledge-store.md.
"""
