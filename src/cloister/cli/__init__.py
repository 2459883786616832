"""The command line: one thin file per command; a command imports its room only when it runs.

Exit codes: 0 done, 1 internal, 2 usage, 3 verification, 4 network, 5 policy (errors.py).
"""
