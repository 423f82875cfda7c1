"""average-pool-to-global: an AveragePool over the whole image becomes GlobalAveragePool."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxptq.passes.edit import is_op, new_node, remove, static_dims, take_over


@dataclass(frozen=True)
class AveragePoolToGlobal(ir.passes.InPlacePass):
    """Use the global form where it is the same: its integer kernel sums codes, which is exact."""

    name: ClassVar[str] = "average-pool-to-global"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        pools = [node for node in model.graph if is_op(node, "AveragePool") and _is_whole(node)]
        for node in pools:
            new = new_node(node, "GlobalAveragePool", [node.inputs[0]], node.name or "pool")
            take_over(new.outputs[0], node.outputs[0])
            remove(node)
        return ir.passes.PassResult(model, modified=bool(pools))


def _is_whole(node: ir.Node) -> bool:
    window = node.attributes.get_ints("kernel_shape", ())
    image = static_dims(node.inputs[0], 2)
    padded = any(node.attributes.get_ints("pads", ()) or ())
    same = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return image is not None and tuple(window or ()) == image and not padded and not same
