"""Evidence: what attesters sign, parsed into frozen types. Nothing in this room is trusted yet."""
