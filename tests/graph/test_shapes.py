from onnxptq.graph import shapes, text


def test_shapes_are_inferred_through_a_large_weight() -> None:
    numbers = ", ".join(["1"] * 2000)
    model = text.from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,1000] y) <float[2,1000] w = {{{numbers}}}>
        {{ a = MatMul (x, w) y = Relu (a) }}""")

    shapes.infer(model)

    assert str(model.graph[0].outputs[0].shape) == "[N,1000]"
    assert model.graph.initializers["w"].const_value is not None


def test_declared_ports_stay_as_the_user_wrote_them() -> None:
    model = text.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch,3] x) => (float[out,3] y) { y = Relu (x) }""")

    shapes.infer(model)

    assert str(model.graph.outputs[0].shape) == "[out,3]"


def test_a_stale_shape_is_replaced() -> None:
    model = text.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) <float[7,7] a> { a = Relu (x) y = Neg (a) }""")

    shapes.infer(model)

    assert str(model.graph[0].outputs[0].shape) == "[N,3]"


def test_what_cannot_be_inferred_is_left_alone() -> None:
    model = text.from_text("""<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
        g (float[N,3] x) => (float[N,3] y) { a = my.domain.Magic (x) y = Neg (a) }""")

    shapes.infer(model)

    assert model.graph[0].outputs[0].shape is None
