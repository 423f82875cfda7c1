"""What test_targets.py has computed in processes that compile for another CPU.

python -m tests.kernels.on_target JOB ARGUMENT ... prints the job's answer as JSON.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba import types

from onnxptq.kernels import KERNELS, ROW_KERNELS, conv_u8s8, maddubs, target
from onnxptq.kernels.dispatch import columns_of
from onnxptq.kernels.jit import ROW_KERNEL, python_version
from tests.kernels.test_every_kernel import outcome

LEVELS = (
    (0, 255, 127),
    (0, 255, 64),
    (3, 255, 30),
    (0, 255, 16),
    (0, 15, 127),
    (0, 15, 8),
    (9, 9, 1),
)
"""Lowest and highest code, highest weight."""
ARM = "aarch64-unknown-linux-gnu"


def compiled(function: Callable[..., Any], signature: tuple[Any, ...]) -> Any:
    """A function compiled afresh: what comes from the cache on disk has no text."""
    options = {"nogil": True, "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    njit: Any = numba.njit
    dispatcher = njit(**options)(python_version(function))
    dispatcher.compile(signature)
    return dispatcher


def products() -> dict[str, Any]:
    """Sums of maddubs.py that differ from numpy's, and the lengths of chains."""
    rng, chains, wrong = np.random.default_rng(0), [], 0
    for lo, hi, top in LEVELS:
        weight = rng.integers(-top, top + 1, (1, 16, 3, 44)).astype(np.int8)
        weight[..., :8] = top
        x = rng.integers(lo, hi + 1, 999).astype(np.uint8)
        x[:100], x[100:200] = hi, lo
        taps, places = np.array([0, 100, 300]), np.arange(maddubs.PIXELS) * 50
        packed = maddubs.pack(weight, taps, (lo, hi))
        addresses = places + x.ctypes.data
        acc = np.zeros((maddubs.PIXELS, 16), np.int32)
        maddubs.multiply(
            addresses.ctypes.data,
            0,
            packed.offsets.ctypes.data,
            int(packed.starts[1]),
            packed.chain,
            packed.weights.ctypes.data,
            acc.ctypes.data,
        )
        codes = np.stack([[x[p + t : p + t + 44] for t in taps] for p in places]).astype(np.int64)
        expected = np.einsum("ptk,ctk->pc", codes, weight[0].astype(np.int64))
        wrong += int((expected != acc).sum())
        chains.append(packed.chain)
    return {"wrong": wrong, "chains": chains}


def product_code() -> dict[str, Any]:
    """Assembly of the kernel of maddubs.py."""
    signature = (types.int64,) * 7
    return {"assembly": compiled(maddubs.multiply, signature).inspect_asm(signature)}


def kernel_code(name: str) -> dict[str, Any]:
    """Assembly of a kernel of the executor."""
    return {"assembly": compiled(ROW_KERNELS[name], ROW_KERNEL).inspect_asm(ROW_KERNEL)}


def _arm_machine() -> Any:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return binding.Target.from_triple(ARM).create_target_machine(opt=2)


def arm_code(name: str) -> dict[str, Any]:
    """Assembly of a kernel of the executor for AArch64, and what is for x86 alone in its LLVM code.

    The process ends where there is no such assembly.
    """
    text = compiled(ROW_KERNELS[name], ROW_KERNEL).inspect_llvm(ROW_KERNEL)
    machine, foreign = _arm_machine(), sorted(set(re.findall(r"llvm\.x86\.[\w.]+", text)))
    text = re.sub(r'^target triple = ".*"$', f'target triple = "{ARM}"', text, flags=re.M)
    text = re.sub(r'^target datalayout = ".*"$', "", text, flags=re.M)
    text = re.sub(r'"(target-cpu|target-features)"="[^"]*"', "", text)
    module = binding.parse_assembly(text)
    module.data_layout = str(machine.target_data)
    return {"assembly": machine.emit_assembly(module), "foreign": foreign}


def has_arm() -> dict[str, Any]:
    """Whether this LLVM compiles for AArch64, and what this process compiles for."""
    try:
        _arm_machine()
    except RuntimeError:
        return {"known": False}
    return {"known": True, "is_x86": target.IS_X86}


def cases() -> dict[str, Any]:
    """Cases of conv_u8s8 that differ from the plain twin, and a digest of all codes."""
    kernel, digest, wrong, chains = KERNELS["conv_u8s8"], hashlib.sha256(), 0, set[int]()
    where = columns_of("conv_u8s8")
    for arguments in kernel.cases(np.random.default_rng(7)):
        found, expected = outcome(kernel.function, arguments), outcome(kernel.naive, arguments)
        wrong += not np.array_equal(found[2], expected[2])
        row = arguments[0]
        size = int(np.prod([row[where[name]] for name in ("batch", "out_h", "out_w")]))
        size *= int(row[where["groups"]] * row[where["group_out"]]) * (
            4 if row[where["real_acc"]] else 1
        )
        start = int(row[where["y"]])
        digest.update(found[2][start : start + size].tobytes())
        chains.add(int(row[where["chain"]]))
    return {
        "wrong": wrong,
        "digest": digest.hexdigest(),
        "chains": sorted(chains),
        "by_steps": conv_u8s8.BY_STEPS,
    }


def network(program: str, feeds: str) -> dict[str, Any]:
    """Digest of every tensor of a program, and the kernels of its plan."""
    from onnxptq.runtime.execute import Executor  # noqa: PLC0415 - the other jobs need none

    with np.load(feeds) as arrays:
        traced = Executor(program).trace(dict(arrays))
    digest = hashlib.sha256()
    for name in sorted(traced):
        digest.update(name.encode() + np.ascontiguousarray(traced[name]).tobytes())
    return {"digest": digest.hexdigest(), "tensors": len(traced)}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job
    for job in (products, product_code, kernel_code, arm_code, has_arm, cases, network)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])) + "\n")
