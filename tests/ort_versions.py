"""What differs between the versions of onnxruntime that tests run with."""

from onnxptq import ort
from onnxptq.rewrite.storage import parse_version

VERSION = parse_version(ort.version())
IS_OLD = VERSION < (1, 31, 1)
"""It has fewer kernels, and wraps codes of a softmax around; programs hold islands for that."""
SOFTMAX_IS_EXACT = VERSION >= (1, 32)
"""See formulas.softmaxed: whether quotients are rounded once, or to float32 before."""
