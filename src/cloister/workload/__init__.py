"""``cloister run``: an unmodified program, attested, with its keys, sealed files in the clear, and a name in the mesh."""
