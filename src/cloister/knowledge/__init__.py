"""Questions over an organisation's own documents: read in confinement, cut into passages, kept in an encrypted index.

>>> library = Library(Index.open(path, key, model=encoder.name, dimensions=encoder.dimensions), encoder)
>>> library.add("clinic", "asthma.pdf", content)
>>> library.find("What helps against asthma?", ["clinic"])
"""

from __future__ import annotations

from cloister.knowledge.embedding import Encoder
from cloister.knowledge.index import Index
from cloister.knowledge.passages import Passage
from cloister.knowledge.shelf import Added, Library, Removed
from cloister.knowledge.store import Document, Found

__all__ = ["Added", "Document", "Encoder", "Found", "Index", "Library", "Passage", "Removed"]
