"""Torch modules, one family a file; `registry` lists them and stays light, so that a recipe is checked without torch."""
