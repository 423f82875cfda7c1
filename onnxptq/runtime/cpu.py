"""What of this CPU matters: whose arithmetic onnxruntime has here, and the layout of its floats."""

import platform

NO_VNNI = "no VNNI"
"""How the class of a machine ends where onnxruntime saturates sums of two products."""


def cpu_features() -> frozenset[str]:
    """What this CPU can do, in LLVM's names."""
    from llvmlite import binding  # noqa: PLC0415 - only where it is asked for

    found = binding.get_host_cpu_features()
    return frozenset(name for name, present in found.items() if present)


def cpu_class() -> str:
    """The machine class that bit-exactness is said for."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return f"{machine} (formulas were established on x86-64)"
    features = cpu_features()
    vnni = "VNNI" if {"avx512vnni", "avxvnni"} & features else NO_VNNI
    fma = "FMA" if "fma" in features else "no FMA"
    return f"x86-64 with {fma}, {vnni}"


def float_block() -> int:
    """Channels that stand together in onnxruntime's layout of float convolutions.

    Source:
        onnxruntime/core/mlas/lib/snchwc.cpp, MlasNchwcGetBlockSize: 16 with AVX-512, else 8.
    """
    return 16 if "avx512f" in cpu_features() else 8
