"""Federated training between organisations that do not trust each other."""
