"""Models that others trained: fetched, checked, converted to ONNX, and described by a contract."""
