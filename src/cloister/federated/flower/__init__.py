"""Flower: its processes on loopback, our two apps in them, and the ways between these and aggregator and workload."""
