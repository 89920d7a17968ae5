"""Torch modules, one family per file, and their export to ONNX. `headrace.recipe.models` lists them without importing torch."""
