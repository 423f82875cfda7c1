import subprocess
import sys


def test_export_without_torch_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; from onnxptq.export import torch_onnx"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1].startswith("onnxptq.errors.SpecError: export needs torch")
    assert done.stderr.endswith("pip install 'onnxptq[torch]'\n")
