"""A run to look at: what its facts come to, in words, curves and tables, as one HTML document."""
