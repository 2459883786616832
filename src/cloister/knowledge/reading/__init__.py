"""Documents of other people as blocks. What is here runs in a confined process of its own (knowledge/reader.py)."""
