"""What long methods put by is used again for the same work, and for no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxptq import demo_data
from onnxptq.calibrate.model import calibrate
from onnxptq.calibrate.run import CollectOptions
from onnxptq.calibrate.source import Taken
from onnxptq.methods import apply
from onnxptq.methods.gptq import Gptq
from onnxptq.methods.kept import Folder
from onnxptq.methods.method import Context
from onnxptq.pipeline import quantize
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from tests.small_models import from_text

METHODS = "mse,weights-mse,gptq"


@pytest.fixture
def begun(rng: np.random.Generator) -> tuple[Recipe, Context]:
    model = from_text(
        """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y)
           { a = Conv(x, w0) b = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(b, w1) }""",
        rng,
        {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3)},
    )
    placing = Placing(bits="w3a8", keep_first_last=False)
    feeds = [{"x": rng.normal(size=(1, 3, 6, 6)).astype(np.float32)} for _ in range(16)]
    data, held_out = Taken(feeds[:12], None, 12, "first"), Taken(feeds[12:], None, 4, "last")
    recipe, stats = calibrate(model, place(model, placing), data, placing, CollectOptions())
    return recipe, Context(model, stats, data, held_out)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Gptq]:
    """Fills with each run of gptq."""
    seen: list[Gptq] = []
    run = Gptq.apply

    def counted(self: Gptq, recipe: Recipe, ctx: Context) -> Recipe:
        seen.append(self)
        return run(self, recipe, ctx)

    monkeypatch.setattr(Gptq, "apply", counted)
    return seen


def test_a_method_that_was_done_is_not_done_again(
    begun: tuple[Recipe, Context], runs: list[Gptq], tmp_path: Path
):
    recipe, ctx = begun
    ctx = replace(ctx, kept=Folder(tmp_path / "kept"))

    first = apply(recipe, METHODS, ctx)
    second = apply(recipe, METHODS, ctx)

    assert len(runs) == 1
    assert second.to_json() == first.to_json()


@pytest.mark.parametrize("what", ["seed", "data", "method", "recipe"])
def test_other_work_is_done(
    what: str, begun: tuple[Recipe, Context], runs: list[Gptq], tmp_path: Path
):
    recipe, ctx = begun
    ctx = replace(ctx, kept=Folder(tmp_path / "kept"))
    apply(recipe, METHODS, ctx)
    data = Taken([], None, 0, "other")
    if what == "seed":
        apply(recipe, METHODS, replace(ctx, seed=1))
    elif what == "method":
        apply(recipe, f"{METHODS}{{sweeps=2}}", ctx)
    elif what == "recipe":
        apply(recipe, METHODS.replace("weights-mse", "weights-minmax"), ctx)
    else:
        assert ctx.key(recipe, "gptq") != replace(ctx, batches=data).key(recipe, "gptq")
        assert ctx.key(recipe, "gptq") != replace(ctx, held_out=data).key(recipe, "gptq")
        return

    assert len(runs) == 2


def test_data_that_cannot_be_told_apart_keep_nothing(begun: tuple[Recipe, Context], tmp_path: Path):
    recipe, ctx = begun
    ctx = replace(ctx, kept=Folder(tmp_path))

    assert ctx.key(recipe, "gptq") is not None
    assert replace(ctx, batches=Taken([], None, 0, "")).key(recipe, "gptq") is None


def test_a_folder_keeps_the_last_text_of_a_key_and_is_cleared(tmp_path: Path):
    folder = Folder(tmp_path / "kept")
    folder.save("one", "first")
    folder.save("one", "second")
    folder.save("two", "other")

    assert folder.load("one") == "second"
    assert Folder(tmp_path / "kept").load("two") == "other"
    assert folder.load("three") is None

    folder.clear()

    assert not folder.path.exists()


def test_what_others_put_into_the_folder_stays(tmp_path: Path):
    folder = Folder(tmp_path)
    folder.save("one", "text")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    folder.clear()

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_work_is_kept_until_the_model_is_saved(tmp_path: Path, rng: np.random.Generator):
    feeds = tmp_path / "calib.npz"
    np.savez(feeds, input=rng.uniform(0, 1, (16, 1, 8, 8)).astype(np.float32))
    stats = tmp_path / "s.npz"

    result = quantize(
        demo_data.model_path(), str(feeds), method="mse,weights-mse,gptq", stats=stats
    )

    assert list((tmp_path / "s.npz.kept").iterdir())

    result.save(tmp_path / "q.onnx")

    assert not (tmp_path / "s.npz.kept").exists()
