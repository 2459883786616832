"""The project's scoreboard: ``make bench`` measures what the documentation claims, and writes ``docs/benchmarks/``."""
