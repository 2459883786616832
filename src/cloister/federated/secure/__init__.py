"""Secure aggregation: updates are added under masks, so that nobody sees one of them (docs/spec/secure-aggregation.md)."""
