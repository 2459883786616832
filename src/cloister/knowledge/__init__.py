"""Questions over an organisation's own documents: passages, an encrypted index, what answers a question."""
