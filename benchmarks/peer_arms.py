"""The peers: what installs each, what it is asked for at which widths, and why not at others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUNTIME = "onnxruntime==1.32.0"
TORCH = "torch==2.13.0"
"""Asked for first and kept: a later torch brings gigabytes of CUDA along."""
BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a8", "w2a4")
SLOW = {"efficientnet_lite0": "adaround"}
"""Left out unless asked for: AIMET's took 18 minutes there with 200 iterations a layer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One package in an environment of its own.

    Attributes:
        name: Its row's name, and its environment's folder.
        script: File of `peer_scripts` that runs there.
        steps: What pip is asked for, one call after the other.
        methods: What the script is asked for, by width.
        refusal: Why it has no file of the other widths.
    """

    name: str
    script: str
    steps: Sequence[Sequence[str]]
    methods: Mapping[str, Sequence[str]]
    refusal: str

    def asked(self, bits: str, network: str, slow: bool = False) -> list[str]:
        """Methods to try at a width on a network."""
        left_out = None if slow else SLOW.get(network)
        return [
            method
            for method in self.methods.get(bits, ())
            if left_out is None or left_out not in method
        ]


LOW = ("tf_enhanced+seq_mse", "tf_enhanced+adaround500")
PEERS = (
    Peer(
        "ort",
        "ort_static",
        ((RUNTIME, "onnx==1.23.2"),),
        {"w8a8": ("MinMax", "Percentile"), "w4a8": ("MinMax",), "w4a4": ("MinMax",)},
        "QuantType has 4, 8 and 16 bits",
    ),
    Peer(
        "onnxsim",
        "onnxsim_quant",
        (("onnxsim==0.8.1", RUNTIME, "onnx==1.23.2"),),
        {"w8a8": ("minmax", "mse", "mse+correct_bias")},
        "quantize_full_qdq has 8 and 16 bits; its int4 weights are for float activations",
    ),
    Peer(
        "aimet",
        "aimet",
        ((TORCH,), ("aimet-onnx==2.42.0", RUNTIME, TORCH)),
        {
            "w8a8": ("min_max", "tf_enhanced"),
            "w4a8": ("tf_enhanced", *LOW),
            **dict.fromkeys(BITS[2:], LOW),
        },
        "",
    ),
    Peer(
        "nncf",
        "nncf_ptq",
        (("nncf==3.4.0", RUNTIME, "onnx==1.23.2"),),
        {"w8a8": ("performance", "mixed", "mixed+full")},
        "nncf.quantize refuses num_bits other than 8 on ONNX",
    ),
    Peer(
        "onc",
        "inc",
        # It imports the last two without asking for them.
        (("onnx-neural-compressor==1.0", RUNTIME, "onnx==1.23.2", "prettytable", "scipy"),),
        {"w8a8": ("MinMax", "Percentile")},
        "StaticQuantConfig has 8 bits; its 4-bit weights are for MatMul",
    ),
    Peer(
        "quark",
        "quark_ptq",
        ((TORCH,), ("amd-quark==0.13", RUNTIME, TORCH)),
        {"w8a8": ("MinMax", "Percentile", "Percentile+adaround1000")},
        "its ONNX tensor specs have 8, 16 and 32 bits and block floating point",
    ),
)
