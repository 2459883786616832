"""One file a schema version, in their order."""
