"""From a Hugging Face model's folder to one GGUF file: what llama.cpp reads, and OpenVINO GenAI too.

``gguf.convert`` is the way in. Needs numpy: ``pip install 'cloister[optimize]'``.
"""
