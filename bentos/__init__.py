"""The served side: one BentoML service for every contract. Needs BentoML, ONNX Runtime and `headrace.runtime`."""
