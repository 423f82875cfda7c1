"""One piece of work in a process, so that time and memory are its own (`common.run_job`)."""

# Each job imports what it needs, for the time and memory of the others.
# ruff: noqa: PLC0415

import gc
import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def quantize(model: str, data: str, output: str, **options: Any) -> Answer:
    """Our `quantize`, loading and saving included."""
    from onnxptq.pipeline import quantize as ours

    started, cpu = time.perf_counter(), time.process_time()
    result = ours(model, data, **options)
    result.save(output)
    return {
        "call_wall_s": time.perf_counter() - started,
        "call_cpu_s": time.process_time() - cpu,
        "float_nodes": [str(node.node) for node in result.report.float_nodes],
        "notes": list(result.notes),
        "steps": [asdict(step) for step in result.report.steps],
    }


def quantize_static(
    model: str, data: str, output: str, preprocess: str, method: str = "Percentile"
) -> Answer:
    """onnxruntime's own: `quant_pre_process`, then QDQ, per channel, uint8 and int8."""
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
    )
    from onnxruntime.quantization import (
        quantize_static as theirs,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from benchmarks.feeds import NpzReader

    started, cpu = time.perf_counter(), time.process_time()
    prepared = Path(output).with_suffix(".prepared.onnx")
    quant_pre_process(model, str(prepared), skip_symbolic_shape=True)
    theirs(
        str(prepared),
        output,
        NpzReader(Path(model), Path(data), preprocess),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return {
        "call_wall_s": time.perf_counter() - started,
        "call_cpu_s": time.process_time() - cpu,
    }


def load_times(models: dict[str, str], rounds: int) -> Answer:
    """Seconds that onnxruntime takes to make a session of each file, one after the other."""
    from onnxptq import ort

    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, path in models.items():
            gc.collect()
            started = time.perf_counter()
            ort.session(Path(path), threads=1)
            times[name].append(time.perf_counter() - started)
    return {"seconds": times}


def executor(source: str, feeds: str, cache: str) -> Answer:
    """A program or a quantized model to its first result, Numba's cache being in `cache`."""
    os.environ["NUMBA_CACHE_DIR"] = cache
    started = time.perf_counter()
    import numpy as np

    from onnxptq.runtime.execute import Executor

    imported = time.perf_counter()
    made = Executor(source)
    loaded = time.perf_counter()
    with np.load(feeds) as arrays:
        made.run(None, dict(arrays))
    return _parts(started, imported, loaded)


def session(source: str, feeds: str) -> Answer:
    """The same with onnxruntime."""
    started = time.perf_counter()
    import numpy as np
    import onnxruntime

    imported = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    with np.load(feeds) as arrays:
        made.run(None, dict(arrays))
    return _parts(started, imported, loaded)


def convolutions(
    cpu: str, layers: dict[str, list[int]], levels: dict[str, dict[str, int]], rounds: int
) -> Answer:
    """GMAC/s of 3x3 layers compiled for a CPU that is named, and what its instructions allow."""
    os.environ |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    import numpy as np

    from benchmarks.limits import limits
    from onnxptq.kernels import cases_conv_u8s8, conv_u8s8

    best: dict[str, Answer] = {}
    work: dict[str, Any] = {}
    for name, (size, channels) in layers.items():
        for level, numbers in levels.items():
            key = f"{name}, {level}"
            work[key] = cases_conv_u8s8.layer(np.random.default_rng(0), size, channels, numbers)
            best[key] = {
                "macs": 9 * (size * channels) ** 2,
                "chain": int(work[key][0][conv_u8s8.CHAIN]),
                "seconds": float("inf"),
            }
            conv_u8s8.conv_u8s8(*work[key])
    allowed = limits()
    most = dict.fromkeys(allowed, 0.0)
    for _ in range(rounds):
        most |= {name: max(most[name], run()) for name, run in allowed.items()}
        for key, arguments in work.items():
            started = time.thread_time()
            conv_u8s8.conv_u8s8(*arguments)
            best[key]["seconds"] = min(best[key]["seconds"], time.thread_time() - started)
    for found in best.values():
        found["gmacs"] = found.pop("macs") / found.pop("seconds") / 1e9
    return {"limits": most, "layers": best}


def _parts(started: float, imported: float, loaded: float) -> Answer:
    """Seconds of importing, loading, and the first result."""
    now = time.perf_counter()
    return {"import_s": imported - started, "load_s": loaded - imported, "first_s": now - loaded}


def peak_rss_mb() -> float:
    """Highest resident memory of this process in 10^6 bytes.

    Not `ru_maxrss`: Linux begins that at the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.M)
        if found:
            return int(found.group(1)) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


JOBS = {
    "quantize": quantize,
    "quantize_static": quantize_static,
    "load_times": load_times,
    "executor": executor,
    "session": session,
    "convolutions": convolutions,
}


def main(job: str, arguments: str) -> None:
    answer = JOBS[job](**json.loads(arguments))
    print(json.dumps({**answer, "peak_rss_mb": peak_rss_mb()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
