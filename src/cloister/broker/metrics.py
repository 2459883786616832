"""Prometheus metrics of a broker: how many, how long, how big. No path, name or digest is a label: they are for
operators.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.attested = Counter(
            "cloister_broker_attestations", "Attestations by outcome", ["outcome"], registry=self.registry
        )
        self.released = Counter(
            "cloister_broker_releases", "Releases by outcome", ["outcome"], registry=self.registry
        )
        self.limited = Counter(
            "cloister_broker_limited", "Requests refused by the rate limit", registry=self.registry
        )
        self.requests = Histogram(
            "cloister_broker_request_seconds", "Time of requests", ["endpoint"], registry=self.registry
        )
        self.entries = Gauge("cloister_broker_log_entries", "Audit entries", registry=self.registry)
        self.sessions = Gauge("cloister_broker_sessions", "Open attested sessions", registry=self.registry)
        self.locked = Gauge(
            "cloister_broker_locked", "1 while the state waits for its owners' shares", registry=self.registry
        )
        self.witnesses = Gauge(
            "cloister_broker_witnesses", "Witnesses that must agree; 0: none", registry=self.registry
        )

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
