"""Code that replicas share with training: contracts, tokenizers, decoding, token verification, usage, HTTP helpers.

bentos imports no other package of headrace. Here only itself and `headrace.errors` are imported.
"""

__version__ = "0.1.0"
