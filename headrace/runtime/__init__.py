"""What replicas share with training: contracts, tokenizers, decoding, token verification, usage, HTTP.

bentos imports this package alone.
"""
