"""Sealed trees: what programs write in place (suite 2). Format: docs/spec/sealed-tree.md."""

from cloister.sealing.tree.creation import create_tree, is_tree
from cloister.sealing.tree.head import Head
from cloister.sealing.tree.opening import open_tree
from cloister.sealing.tree.sealed_tree import SealedTree

__all__ = ["Head", "SealedTree", "create_tree", "is_tree", "open_tree"]
