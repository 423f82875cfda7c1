"""From a torch module to an ONNX file. Needs the extra `torch`, and says so when it is imported."""

import importlib

from onnxptq.errors import SpecError

try:
    importlib.import_module("torch")  # here, once, before any file of this folder imports it
except ImportError as error:
    raise SpecError(
        f"export needs torch, which cannot be imported here ({error}): pip install 'onnxptq[torch]'"
    ) from error
