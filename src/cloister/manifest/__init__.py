"""What owners signed: the manifest of an application, the rules of its resources, single orders (docs/spec/manifest.md).

Pure: bytes in, accepted documents out. Nothing here asks a clock, a disk or a peer; only ``signers`` runs ``ssh-keygen``.
"""
