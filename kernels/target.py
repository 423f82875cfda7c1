"""What the CPU that code is compiled for can do; an instruction it lacks would end the process.

Numba compiles for the CPU it runs on, or for the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
name, which is how tests make this machine compile for a smaller one.
"""

import ctypes
import os
import sys

from llvmlite import binding
from numba.core import config

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_KNOWN = {
    # What LLVM's own tables say of the CPU names that tests force, as far as kernels ask for it.
    "generic": frozenset[str](),
    "x86-64": frozenset({"sse2"}),
    "haswell": frozenset({"sse2", "avx2", "fma"}),
    "skylake-avx512": frozenset({"sse2", "avx2", "fma", "avx512bw", "avx512vl"}),
    "cascadelake": frozenset({"sse2", "avx2", "fma", "avx512bw", "avx512vl", "avx512vnni"}),
}


def _host() -> frozenset[str]:
    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def features_of(
    cpu_name: str | None, cpu_features: str | None, *, enable_avx: bool = True
) -> frozenset[str]:
    """Features of a target in LLVM's names, as Numba reads its settings; never one too many.

    Args:
        cpu_name: A CPU's name; one that is not known here counts as a CPU without features.
        cpu_features: "+one,-other", which change those of the name; None for those of the CPU at
            hand, whatever the name.
        enable_avx: Whether anything of AVX may be used.
    """
    found = _host() if cpu_features is None else _KNOWN.get(cpu_name or "", frozenset[str]())
    for word in (cpu_features or "").split(","):
        feature = word.strip()
        found = found | {feature[1:]} if feature.startswith("+") else found - {feature[1:]}
    return found if enable_avx else frozenset(f for f in found if not f.startswith("avx"))


FEATURES = features_of(config.CPU_NAME, config.CPU_FEATURES, enable_avx=bool(config.ENABLE_AVX))
"""Of the target of this process."""

IS_X86 = "sse2" in FEATURES
HAS_VNNI = {"avx512bw", "avx512vl", "avx512vnni"} <= FEATURES
HAS_VBMI = HAS_VNNI and "avx512vbmi" in FEATURES
HAS_AVX2 = "avx2" in FEATURES
TILES_SETTING = "ONNXPTQ_TILES"
"""Environment variable: 0 keeps a process from tile registers."""
HAS_AMX = HAS_VNNI and {"amx-tile", "amx-int8"} <= FEATURES


def allow_tiles() -> bool:
    """Ask the system for tile registers, which a process must do before it touches one.

    Returns:
        Whether this process, and all its threads and children, may use them.

    Source:
        Linux, Documentation/arch/x86/xstate.rst: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
    """
    if not HAS_AMX or sys.platform != "linux" or os.environ.get(TILES_SETTING) == "0":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
