"""Blocks learned by gradients: what is stored is what was learned, never worse than before."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxptq.errors import SpecError
from onnxptq.methods import apply, parse_methods
from onnxptq.methods.held_out import output_db
from onnxptq.methods.layerwise import layers_of
from onnxptq.methods.method import Context
from onnxptq.ops.nodes import constant
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from tests.learned import WEIGHTS, context, network
from tests.small_models import from_text

torch = pytest.importorskip("torch", reason="needs the torch extra")
blocks = pytest.importorskip("onnxptq.methods.reconstruction.blocks")
engine = pytest.importorskip("onnxptq.methods.reconstruction.engine")
grids = pytest.importorskip("onnxptq.methods.reconstruction.grids")
plan = pytest.importorskip("onnxptq.methods.reconstruction.plan")
quantized_block = pytest.importorskip("onnxptq.methods.reconstruction.quantized_block")
samples = pytest.importorskip("onnxptq.methods.reconstruction.samples")
soft_weights = pytest.importorskip("onnxptq.methods.reconstruction.soft_weights")

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


@pytest.fixture
def model(rng: np.random.Generator) -> ir.Model:
    return network(rng)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_soft_weight_begins_as_the_real_one_and_hardens_to_nearest(
    bits: int, rng: np.random.Generator
):
    real = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    spec = QuantSpec(bits, signed=True, axis=0)
    top = np.abs(real).max(axis=(1, 2, 3))
    params = QParams.from_range(-top, top, spec)
    start = soft_weights.Start(real, params, None, (params.code_lo, params.code_hi))

    weight = soft_weights.SoftWeight(start, CPU)

    assert weight.codes().tolist() == params.quantize(real).tolist()
    assert (
        np.abs(weight.soft().detach().numpy() - params_clipped(real, params)).max()
        < 1e-3 * top.max()
    )


def params_clipped(real: npt.NDArray[np.float32], params: QParams) -> npt.NDArray[np.float32]:
    """The weight inside of the range of its codes."""
    return np.clip(real, params.along(params.lo, 4), params.along(params.hi, 4))


def test_a_soft_weight_begins_with_any_codes_it_is_given(rng: np.random.Generator):
    """Also with such as lie far from the real weight, as coordinate descent leaves them."""
    real = rng.normal(size=(4, 8)).astype(np.float32)
    params = QParams.from_range(
        np.full(4, -2.0), np.full(4, 2.0), QuantSpec(3, signed=True, axis=0)
    )
    codes = rng.integers(-4, 4, size=(4, 8)).astype(np.int8)
    start = soft_weights.Start(real, params, codes, (params.code_lo, params.code_hi))

    weight = soft_weights.SoftWeight(start, CPU)

    assert weight.codes().tolist() == codes.tolist()
    assert weight.hard().detach().numpy() == pytest.approx(params.dequantize(codes), rel=1e-6)


def activation(bits: int, scale: float, zero: int, code_lo: int) -> QParams:
    """The parameters of an activation."""
    spec = QuantSpec(bits, signed=False)
    codes = (np.asarray(code, np.int32) for code in (zero, code_lo))
    return QParams(spec, np.asarray(scale, np.float32), *codes)


@pytest.mark.parametrize("zero", [0, 100])
def test_a_grid_gives_what_the_codes_stand_for(zero: int, rng: np.random.Generator):
    params = activation(3, 0.3, zero, max(zero - 2, 0))
    x = rng.normal(size=(4, 50)).astype(np.float32)

    found = grids.Grid(params, CPU)(torch.from_numpy(x))

    assert found.detach().numpy().tolist() == params.round_trip(x).tolist()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_grid_in_one_pass_has_the_gradients_of_torch(share: float, rng: np.random.Generator):
    grid = grids.Grid(activation(3, 0.3, 100, 98), CPU)
    x = torch.from_numpy(rng.normal(size=(4, 5, 7)).astype(np.float32)).requires_grad_()
    free = torch.from_numpy((rng.random((4, 5, 7)) < share).astype(np.uint8))
    weight = torch.from_numpy(rng.normal(size=(4, 5, 7)).astype(np.float32))

    plain = torch.where(free != 0, x, grid.plain(x))
    expected = torch.autograd.grad((plain * weight).sum(), [x, grid.log_scale])
    found = torch.autograd.grad((grid(x, free) * weight).sum(), [x, grid.log_scale])

    assert torch.equal(grid(x, free), plain)
    assert torch.allclose(found[0], expected[0])  # plain divides by the scale and multiplies again
    assert float(found[1]) == pytest.approx(float(expected[1]), rel=1e-4)


def test_a_step_has_the_gradient_of_lsq():
    """Inside: code less exact quotient; outside: the end's code (LSQ, equation 3)."""
    grid = grids.Grid(activation(2, 0.5, 0, 0), CPU)
    x = torch.tensor([0.6, 0.9, 7.0, -3.0])

    grid(x).sum().backward()

    expected = sum([1 - 1.2, 2 - 1.8, 3.0, 0.0]) * 0.5  # per logarithm of the step
    assert float(grid.log_scale.grad) == pytest.approx(expected, abs=1e-6)


def test_a_block_as_stored_computes_what_onnxruntime_does(
    model: ir.Model, rng: np.random.Generator
):
    """Up to 8-bit values, which have no grid: a code near its border may be its neighbour."""
    recipe, ctx = context(model, rng)
    shelf = samples.Shelf()

    for block in blocks.blocks_of(model, layers_of(model, recipe)):
        if block.name not in recipe.tensors or recipe.tensors[block.name].params.spec.bits == 8:
            continue
        net = quantized_block.QuantizedBlock(block, recipe, quantized_block.AS_STORED, CPU)
        seen = samples.Samples.of(block, recipe, ctx, ctx.samples("test"), shelf)
        with torch.no_grad():
            found = net(torch.from_numpy(seen.coded)).numpy()
        taps = ctx.coded_taps(recipe, [block.name]).values(ctx.samples("test"))
        expected = np.concatenate([batch[block.name] for batch in taps])
        step = float(recipe.tensors[block.name].params.scale)
        assert np.mean(np.abs(found - expected) > 0.5 * step) < 0.05


METHODS = ["adaround", "brecq", "qdrop", "pd-quant", "aquant"]
SHORT = {name: f"{name}{{iterations=60}}" for name in METHODS}
SHORT["pd-quant"] = "pd-quant{iterations=60,correction=10}"
SHORT["fisher"] = "brecq{iterations=60,loss=fisher}"
SHORT["aquant with its prediction"] = "aquant{iterations=60,weight=10}"
SHORT["aquant by tables"] = "aquant{iterations=60,border=quadratic}"


@pytest.mark.parametrize("name", SHORT)
def test_outputs_come_nearer_to_float(name: str, rng: np.random.Generator):
    """On the average of some networks: a small one may be no nearer, and is then as it was."""
    gains: list[float] = []
    for _ in range(3):
        recipe, ctx = context(network(rng), rng)
        found = apply(recipe, SHORT[name], ctx)
        gains.append(output_db(found, ctx) - output_db(recipe, ctx))
        assert found.steps[-1].numbers["gained"] >= 2

    assert min(gains) >= 0
    assert np.mean(gains) > 1


def test_a_rate_near_zero_leaves_all_codes_where_nearest_has_them(
    model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)
    ctx = replace(ctx, held_out=None)

    usual, slow = (
        apply(recipe, f"adaround{{iterations=60,rate={rate}}}", ctx).codes for rate in (1, 1e-6)
    )

    for name in slow:
        real = np.asarray(constant(model.graph.initializers[name]))
        assert np.array_equal(slow[name], recipe.tensors[name].params.quantize(real))
    assert not all(np.array_equal(usual[name], slow[name]) for name in slow)


def test_the_whole_network_is_tuned_without_touching_a_code(
    model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)
    rounded = apply(recipe, SHORT["qdrop"], ctx)

    found = apply(rounded, "finetune{iterations=100}", ctx)

    assert output_db(found, ctx) > output_db(rounded, ctx)
    assert all(np.array_equal(found.codes[name], rounded.codes[name]) for name in rounded.codes)


@pytest.mark.parametrize("method", ["qdrop{iterations=5}", "finetune{iterations=20}"])
def test_what_brings_the_outputs_no_nearer_is_undone(
    method: str, model: ir.Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    recipe, ctx = context(model, rng)
    seen: list[Recipe] = []

    def worse_at_first(of: Recipe, _: Context) -> float:
        seen.append(of)
        return float(len(seen) > 1)

    monkeypatch.setattr(engine, "output_db", worse_at_first)
    found = apply(recipe, method, ctx)

    assert len(seen) == 2
    assert replace(found, steps=recipe.steps).to_json() == recipe.to_json()
    assert found.steps[-1].numbers["kept"] == 0


def test_a_network_of_two_outputs_is_left_as_it_is(rng: np.random.Generator):
    body = "c = Conv(x, w0, b0) d = Relu(c) e = Conv(d, w1, b1)"
    text = f"g (float[N, 3, 6, 6] x) => (float[N, 6, 4, 4] d, float[N, 6, 2, 2] e) {{{body}}}"
    model = from_text(text, rng, {name: WEIGHTS[name] for name in ("w0", "b0", "w1", "b1")})
    recipe, ctx = context(model, rng)

    with pytest.warns(UserWarning, match="finetune: nothing is tuned in a network of several"):
        found = apply(recipe, "finetune", ctx)

    assert found.tensors == recipe.tensors


@pytest.mark.parametrize(("grain", "rows"), [("channel", 6), ("group", 1), ("tensor", 1)])
def test_borders_are_learned_by_channel_group_or_tensor(
    grain: str, rows: int, model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)
    ctx = replace(ctx, held_out=None)

    found = apply(recipe, f"aquant{{iterations=30,border=quadratic,grain={grain}}}", ctx)

    assert found.borders
    for table in found.borders.values():
        assert table.shape == (6, 7)
        assert len(np.unique(table, axis=0)) == rows
        assert ((table >= 0) & (table <= 1)).all()


def test_borders_behind_dense_layers_are_learned_too(rng: np.random.Generator):
    body = """
        a = Gemm<transB = 1>(x, w0) b = Relu(a) c = Gemm(b, w1) d = Relu(c)
        e = Gemm(d, w2) f = Relu(e) y = Gemm(f, w3)
    """
    weights = {"w0": (16, 12), "w1": (16, 9), "w2": (9, 9), "w3": (9, 4)}
    model = from_text(f"g (float[N, 12] x) => (float[N, 4] y) {{{body}}}", rng, weights)
    recipe, ctx = context(model, rng, (12,))

    found = apply(recipe, "aquant{iterations=30,border=quadratic}", replace(ctx, held_out=None))

    assert {name: len(table) for name, table in found.borders.items()} == {"b": 16, "d": 9}


def test_linear_borders_behind_a_sum_are_a_scale_of_their_own(
    model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)

    found = apply(recipe, "aquant{iterations=30}", replace(ctx, held_out=None))

    assert set(found.rounding_scales) == {"h"}
    assert found.rounding_scales["h"] != found.tensors["h"].params.scale
    assert found.borders == {}


def test_borders_of_one_half_round_as_a_grid_does(rng: np.random.Generator):
    params = activation(3, 0.3, 100, 98)
    x = torch.from_numpy(rng.normal(size=(4, 5, 7)).astype(np.float32))
    half = np.full((5, 7), 0.5, np.float32)

    bordered = grids.BorderedGrid(params, half, None, CPU)

    assert torch.equal(bordered(x), grids.Grid(params, CPU)(x))


def test_a_border_goes_where_fewer_values_are_rounded_wrongly():
    """All values at 0.3 steps should be 1: the border comes down below them."""
    learned = plan.Borders("constant", "tensor")
    half = np.full((1, 3), 0.5, np.float32)
    grid = grids.BorderedGrid(activation(2, 1.0, 0, 0), half, learned, CPU)
    optimiser = torch.optim.SGD([grid.coefficients], lr=0.05)
    x = torch.full((1, 1, 64), 0.3)

    for _ in range(40):
        optimiser.zero_grad()
        (grid(x) - 1.0).square().mean().backward()
        optimiser.step()

    assert grid.borders()[0, 0].item() <= 0.3
    assert (grid(x) == 1.0).all()


@pytest.mark.parametrize("name", ["qdrop", "pd-quant"])
def test_the_same_seed_gives_the_same_recipe(name: str, model: ir.Model, rng: np.random.Generator):
    recipe, ctx = context(model, rng)

    assert apply(recipe, SHORT[name], ctx).to_json() == apply(recipe, SHORT[name], ctx).to_json()


class Memory:
    """Keeps texts, and stops the run after a few of them."""

    def __init__(self, saves: int) -> None:
        self.texts: dict[str, str] = {}
        self.left = saves

    def load(self, key: str) -> str | None:
        return self.texts.get(key)

    def save(self, key: str, text: str) -> None:
        self.texts[key] = text
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_recipe(
    saves: int, model: ir.Model, rng: np.random.Generator
):
    recipe, ctx = context(model, rng)
    expected = apply(recipe, SHORT["qdrop"], ctx).to_json()
    kept = Memory(saves)
    interrupted = replace(ctx, kept=kept)

    with pytest.raises(KeyboardInterrupt):
        apply(recipe, SHORT["qdrop"], interrupted)

    assert apply(recipe, SHORT["qdrop"], interrupted).to_json() == expected


def test_codes_of_float_weights_stay_in_their_window(model: ir.Model, rng: np.random.Generator):
    recipe, ctx = context(model, rng)

    found = apply(recipe, "qdrop{iterations=30,scales=true}", ctx)

    for name, codes in found.codes.items():
        lo, hi = found.code_ends(name)
        params = found.tensors[name].params
        assert (codes >= params.along(lo, codes.ndim)).all()
        assert (codes <= params.along(hi, codes.ndim)).all()
        assert codes.shape == constant(model.graph.initializers[name]).shape  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qdrop{iterations=0}", "qdrop: iterations must be 1 to 1000000, not 0"),
        ("qdrop{drop=-1}", "qdrop: drop must be 0 to 1, not -1"),
        ("aquant{drop=1.5}", "aquant: drop must be 0 to 1, not 1.5"),
        ("qdrop{rate=0}", "qdrop: rate must be 1e-06 to 1000, not 0"),
        ("pd-quant{weight=2000}", "pd-quant: weight must be 0 to 1000"),
        ("finetune{temperature=0}", "finetune: temperature must be 0.01 to 1000, not 0"),
        ("adaround{batch-size=0}", "adaround: batch-size must be 1"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str):
    with pytest.raises(SpecError, match=message):
        parse_methods(text)
