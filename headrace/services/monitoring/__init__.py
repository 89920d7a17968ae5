"""Watches served models: drift of what they are asked and answer, and their quality where true answers are known."""
