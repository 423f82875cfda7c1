"""Trains digits.py on scikit-learn's handwritten digits and writes demo/digits.onnx.

    python models/train_digits.py [--epochs 100] [--output models/demo/digits.onnx]

Under two minutes on one core, the same weights from the same seed. The held-out images (see
demo/__init__.py) are looked at once, after the last epoch: nothing is chosen by them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from onnxptq import demo_data
from onnxptq.export.builder import load_builder
from onnxptq.export.torch_onnx import export_module

NETWORK = Path(__file__).resolve().with_name("digits.py")
BATCH = 64
SEED = 0


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotates by up to 12 degrees, scales by up to 10 %, shifts by up to a pixel; [N, 1, 8, 8]."""
    n = len(x)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(12 * np.pi / 180), 1 + uniform(0.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    # Coordinates run from -1 to 1 over 8 pixels: one pixel is 0.25.
    rows = [torch.stack([cos, -sin, uniform(0.25)], 1), torch.stack([sin, cos, uniform(0.25)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Changes `model` by SGD with one cosine of learning rate; same seed, same weights."""
    generator = torch.Generator().manual_seed(SEED)
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            logits = model(augment(x[batch], generator))
            loss = F.cross_entropy(logits, y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {total / steps:.4f}", flush=True)


def top1(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=demo_data.model_path())
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the sum of a reduction depends on the number of threads
    started = time.monotonic()

    model = load_builder(f"{NETWORK}:build")()
    x, y = (torch.from_numpy(array) for array in demo_data.load_train())
    train(model, x, y, arguments.epochs)

    _, x_test, y_test = (torch.from_numpy(array) for array in demo_data.load())
    accuracy = top1(model, x, y), top1(model, x_test, y_test)
    exported = export_module(model, arguments.output, (1, 1, 8, 8))
    print(
        f"top-1: train {accuracy[0]:.2%}, held out {accuracy[1]:.2%}; "
        f"{arguments.output}: {arguments.output.stat().st_size:,} bytes, "
        f"{exported.max_abs_diff:.1e} from torch; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
