"""Load on an OpenAI-shaped service and what it took: for users who measure their own endpoint, and for our own soak runs.

Prompts are made up from seeded words: nothing of the user's is ever sent.
"""
