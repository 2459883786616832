"""The verifier: (evidence, endorsements, now) -> claims. Pure: no clock, no network, no files."""
