"""engine: blocks of a network reconstructed one after the other, each on what is done before it."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from onnxptq.methods.held_out import output_db
from onnxptq.methods.layerwise import layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.ready import ready
from onnxptq.methods.reconstruction.blocks import Block, alone, blocks_of, whole
from onnxptq.methods.reconstruction.coins import Coins
from onnxptq.methods.reconstruction.corrections import corrected, spreads_of
from onnxptq.methods.reconstruction.functions import NoGradientError
from onnxptq.methods.reconstruction.learn import learn
from onnxptq.methods.reconstruction.objective import Ahead, Objective, importance, stored_error
from onnxptq.methods.reconstruction.plan import Plan
from onnxptq.methods.reconstruction.quantized_block import AS_STORED, Learned, QuantizedBlock
from onnxptq.methods.reconstruction.samples import Samples, Shelf, UnusableError
from onnxptq.methods.reconstruction.step_search import choose_steps
from onnxptq.methods.reconstruction.suffix import Suffix
from onnxptq.recipe import Recipe, Step
from onnxptq.rewrite.weights import fit_scales

UNITS = {"layer": alone, "block": blocks_of, "network": whole}


def reconstruct(recipe: Recipe, ctx: Context, plan: Plan, set_by: str) -> Recipe:
    """The recipe with what each block has learned, and a step that says how many gained by it.

    A block that is no nearer to float on the held-out samples stays as it was; so does one with an
    operator that has no gradient, and the whole where the network's outputs are no nearer in the
    end. After each block the recipe is put by, for a run that is interrupted to go on from.

    Raises:
        CalibrationError: There are no calibration data.
    """
    ctx.samples(set_by)
    recipe = ready(recipe, ctx)
    layers = layers_of(ctx.model, recipe)
    blocks = UNITS[plan.unit](ctx.model, layers)
    if plan.unit == "network" and not blocks:
        ctx.remark(f"{set_by}: nothing is tuned in a network of several inputs or outputs")
    key = ctx.key(recipe, f"{set_by} block by block")
    done = _Done.loaded(recipe, ctx, key)
    ctx.progress.start(set_by.partition("{")[0], len(blocks) * plan.iterations)
    try:
        ctx.progress.advance(done.blocks * plan.iterations)
        for number in range(done.blocks, len(blocks)):
            with _deterministic():
                work = _Work(blocks[number], ctx, plan, set_by, ctx.seed + number)
                found = work.done(done.recipe)
            gained = done.gained + (found is not done.recipe)
            done = _Done(found, number + 1, gained)
            done.save(ctx, key)
    finally:
        ctx.progress.finish()
    kept = _is_nearer(done.recipe, recipe, ctx)
    numbers = {"blocks": float(len(blocks)), "gained": float(done.gained), "kept": float(kept)}
    found = done.recipe if kept else recipe
    return found.with_step(Step(set_by, ctx.seed, 0.0, numbers))


def _is_nearer(after: Recipe, before: Recipe, ctx: Context) -> bool:
    """Whether the network's outputs came nearer to float on the samples held out.

    Blocks that each gained may together have lost, at 4 bits behind `gptq` for one. The network as
    one block was judged by the loss it learned from, a softmax at a temperature, which sees little
    of small logits: outputs that it calls nearer were further from float, ResNet-20's at W3A3.
    """
    if ctx.held_out is None or after is before:
        return True
    return output_db(after, ctx) > output_db(before, ctx)


@dataclass(frozen=True, slots=True)
class _Done:
    """How far a reconstruction has come: the recipe so far, and of how many blocks."""

    recipe: Recipe
    blocks: int
    gained: int

    @classmethod
    def loaded(cls, begin: Recipe, ctx: Context, key: str | None) -> "_Done":
        """What an interrupted run put by, else the beginning."""
        text = None if key is None else ctx.kept.load(key)
        if text is None:
            return cls(begin, 0, 0)
        data = json.loads(text)
        return cls(Recipe.from_json(data["recipe"]), data["blocks"], data["gained"])

    def save(self, ctx: Context, key: str | None) -> None:
        """Put it by."""
        if key is not None:
            data = {"recipe": self.recipe.to_json(), "blocks": self.blocks, "gained": self.gained}
            ctx.kept.save(key, json.dumps(data))


@contextmanager
def _deterministic() -> Generator[None]:
    """Only kernels that give the same sums every time, while it lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it took a tenth of the time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled


@dataclass(frozen=True, slots=True)
class _Work:
    """One block's turn."""

    block: Block
    ctx: Context
    plan: Plan
    set_by: str
    seed: int

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def done(self, recipe: Recipe) -> Recipe:
        """What the block has learned, or the recipe as it was where that is nearer to float."""
        shelf = Shelf()
        try:
            return self._nearer(recipe, self._learned(recipe, shelf), shelf)
        except (NoGradientError, UnusableError) as error:
            self.ctx.remark(f"{self.set_by}: the block {self.block.name!r} stays: {error}")
            self.ctx.progress.advance(self.plan.iterations)
            return recipe
        finally:
            shelf.clear()

    def _nearer(self, before: Recipe, after: Recipe, shelf: Shelf) -> Recipe:
        """Of two recipes the one whose block is nearer to float on the samples held out."""
        held = self.ctx.held_out
        if held is None or after is before:
            return after
        samples = Samples.of(self.block, before, self.ctx, held, shelf)
        return after if self._error(after, samples) < self._error(before, samples) else before

    def _error(self, recipe: Recipe, samples: Samples) -> float:
        net = QuantizedBlock(self.block, recipe, AS_STORED, self.device)
        return stored_error(net, samples, self.plan)

    def _learned(self, recipe: Recipe, shelf: Shelf) -> Recipe:
        plan = self.plan
        learned = Learned(
            plan.rounding,
            plan.from_codes,
            plan.steps,
            plan.scales,
            plan.biases,
            plan.borders,
            plan.roundings,
        )
        net = QuantizedBlock(self.block, recipe, learned, self.device)
        if not any(parameter.requires_grad for parameter in net.parameters()):
            return recipe
        samples = Samples.of(self.block, recipe, self.ctx, self.ctx.samples(self.set_by), shelf)
        ahead = self._ahead(shelf) if plan.fisher or plan.prediction or plan.search else None
        if plan.search and ahead is not None:
            choose_steps(net, samples, ahead, plan)
        if plan.fisher and ahead is not None:
            stored = QuantizedBlock(self.block, recipe, AS_STORED, self.device)
            samples = replace(samples, weight=importance(stored, samples, ahead, plan.batch_size))
        if plan.correction.steps:
            spreads = spreads_of(self.block, self.ctx)
            real, target = corrected(
                samples.real, self.block, spreads, plan.correction, self.device
            )
            samples = replace(samples, real=real, target=target)
        coins = Coins(self.seed, self.device)
        objective = Objective(net, samples, plan, ahead if plan.prediction else None, coins)
        rng = np.random.default_rng(self.seed)
        size = min(plan.batch_size, samples.count)
        learn(net, objective, plan, lambda: rng.integers(0, samples.count, size), self._tell)
        return fit_scales(self.ctx.model, net.stored(recipe, self.set_by))

    def _tell(self, iterations: int, loss: float) -> None:
        self.ctx.progress.note(f"{self.block.name}, loss {loss:.3g}")
        self.ctx.progress.advance(iterations)

    def _ahead(self, shelf: Shelf) -> Ahead:
        suffix = Suffix.of(self.ctx.model, self.block.exit, self.device)
        names = [*suffix.beside, *suffix.outputs]
        data = self.ctx.samples(self.set_by)
        return Ahead(suffix, shelf.gathered(self.ctx.float_taps(names).values(data), len(data)))
