"""Runs onnxsim in a process of its own: `python simplify_worker.py IN OUT`.

onnxsim's native code can crash or run for ever; neither must take the caller down. A file to run,
not to import: it imports nothing of onnxptq, so that it starts fast.
"""

import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    """Simplify the model at `source` and write the result to `target`.

    Raises:
        RuntimeError: onnxruntime loads the model, but not what onnxsim made of it.
    """
    # onnxsim imports torch when it is there, for parts that we do not use: 3 s of 4.5 s.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnx  # noqa: PLC0415  (after torch was hidden)
    import onnxsim  # noqa: PLC0415

    model = onnx.load(source)
    # BatchNormalization is folded by us, so that its statistics can be kept.
    simplified, _ = onnxsim.simplify(model, check_n=0, skip_fuse_bn=True)
    data = simplified.SerializeToString()
    reason = _refusal(data)
    # Custom operators are refused before and after; that is not onnxsim's doing.
    if reason and not _refusal(model.SerializeToString()):
        raise RuntimeError(f"onnxruntime refuses its result: {reason}")
    target.write_bytes(data)


def _refusal(data: bytes) -> str:
    """Why onnxruntime does not load the model; empty when it does."""
    import onnxruntime  # noqa: PLC0415, TID251  (onnxptq.ort would import all of onnxptq)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
