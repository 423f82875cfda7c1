import onnx_ir as ir
import pytest

from onnxptq.errors import ModelError
from onnxptq.graph import text, verify


def model() -> ir.Model:
    return text.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) <float one = {1}>
        { [first] a = Relu (x) [second] b = Add (a, one) [third] y = Neg (b) }""")


def test_a_sound_model_passes() -> None:
    verify.check(model())


def test_a_node_without_a_name_is_found() -> None:
    broken = model()
    broken.graph[1].name = ""

    with pytest.raises(ModelError, match=r"node '<unnamed>' \(Add, opset 17\) has no name"):
        verify.check(broken)


def test_two_nodes_of_one_name_are_found() -> None:
    broken = model()
    broken.graph[1].name = "first"

    with pytest.raises(ModelError, match=r"node 'first' .* another node has the same name"):
        verify.check(broken)


def test_two_values_of_one_name_are_found() -> None:
    broken = model()
    broken.graph[1].outputs[0].name = "a"

    with pytest.raises(ModelError, match=r"node 'second' .* defines 'a', which another"):
        verify.check(broken)


def test_a_value_read_before_it_is_made_is_found() -> None:
    broken = model()
    second = broken.graph[1]
    broken.graph.insert_after(broken.graph[2], second)

    with pytest.raises(ModelError, match=r"node 'third' .* reads 'b', which is not defined before"):
        verify.check(broken)


def test_an_output_that_nobody_makes_is_found() -> None:
    broken = model()
    broken.graph.outputs[0] = ir.Value(name="nowhere")

    with pytest.raises(ModelError, match="output 'nowhere' of graph 'g' is not produced"):
        verify.check(broken)


def test_an_initializer_without_data_is_found() -> None:
    broken = model()
    broken.graph.initializers["one"].const_value = None

    with pytest.raises(ModelError, match="initializer 'one' has no data"):
        verify.check(broken)


def test_an_operator_of_an_undeclared_domain_is_found() -> None:
    broken = model()
    broken.graph[0].domain = "my.domain"

    with pytest.raises(ModelError, match=r"domain 'my\.domain' are used but no opset"):
        verify.check(broken)
