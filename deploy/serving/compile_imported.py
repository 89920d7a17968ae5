"""Compiles only the modules that a server imports; bytecode of all modules would add 60 MB to the image.

The bytecode is hash-based and unchecked, so that it does not depend on file times and is valid in every image.
"""

import importlib
import py_compile
import sys
from pathlib import Path

for name in (
    "_bentoml_impl.server.app",
    "_bentoml_sdk",
    "bentoml._internal.service.loader",
    "bentoml.models",
    "msgspec",
    "onnxruntime",
    "opentelemetry.instrumentation.asgi",
    "prometheus_client",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
):
    importlib.import_module(name)

files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
for file in sorted(files):
    if file.suffix == ".py" and file.is_relative_to(sys.prefix):
        py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, doraise=True)
