"""The pieces of the simulated TEE: hardware, certificate chain, collateral, quotes, storage.

Everything here makes genuine structures under a *false root*: a verifier that trusts Intel refuses all of it.
Nothing in this room opens, weakens or skips a check; it only signs.
"""
