"""Runs onnxsim in a process of its own: `python -m onnxptq.passes.simplify_worker IN OUT`.

onnxsim's native code can crash or run for ever; neither must take the caller down.
"""

import sys
from pathlib import Path

import onnx


def main(source: Path, target: Path) -> None:
    """Simplify the model at `source` and write the result to `target`."""
    # onnxsim imports torch when it is there, for parts that we do not use: 3 s of 4.5 s.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnxsim  # noqa: PLC0415  (after torch was hidden)

    model = onnx.load(source)
    # BatchNormalization is folded by us, so that its statistics can be kept.
    simplified, _ = onnxsim.simplify(model, check_n=0, skip_fuse_bn=True)
    target.write_bytes(simplified.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
