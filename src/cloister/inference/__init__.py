"""Inference: the OpenAI API over an engine in this process, behind the sealed gateway."""
