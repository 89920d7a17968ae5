"""Served models: an ONNX graph with its contract, and what each kind of answer needs around it."""
