"""Train the small networks in this folder and export them with their batch norms intact.

    pip install -e ".[train]"
    python models/train.py                  # all four, in under a minute
    python models/train.py digits_cnn       # one of them

Writes ``<name>.onnx`` and ``<name>_test.npz`` (held-out inputs ``x``, labels or targets ``y``) next to this file, or
into ``--output FOLDER``, and prints the figure that the model card states. Data come with scikit-learn; nothing is
downloaded. Every run is seeded and single-threaded: the same versions of the libraries on the same kind of CPU give
the same files, byte for byte.

A plain ``torch.onnx.export`` in evaluation mode folds a batch norm into the convolution before it. Exporting with
``TrainingMode.PRESERVE`` a network that is in evaluation mode keeps every norm, in its inference form.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from data import NOISE, SEED, Split, breast_cancer, digits, noisy_digits
from networks import DigitsAutoencoder, TabularMLP, digits_cnn, digits_preact
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

OPSET = 17


def classification_loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(network(x), y, label_smoothing=0.05)


def denoising_loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(network(x + NOISE * torch.randn_like(x)), y)


def accuracy(output: np.ndarray, data: Split) -> str:
    correct, total = int((output.argmax(1) == data.y_test).sum()), len(data.y_test)
    return f"accuracy {correct / total:.2%} ({correct} of {total})"


def mean_squared_error(output: np.ndarray, data: Split) -> str:
    error, noise = (np.mean((a.astype(np.float64) - data.y_test) ** 2) for a in (output, data.x_test))
    return f"mean squared error {error:.4f} (input: {noise:.4f})"


@dataclass(frozen=True)
class Recipe:
    """What to train on which data, for how long, and how to score it."""

    network: Callable[[], nn.Module]
    data: Callable[[], Split]
    epochs: int
    loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] = classification_loss
    score: Callable[[np.ndarray, Split], str] = accuracy
    input_name: str = "image"
    output_name: str = "logits"


RECIPES = {
    "digits_cnn": Recipe(digits_cnn, digits, epochs=40),
    "digits_autoencoder": Recipe(
        DigitsAutoencoder, noisy_digits, 120, denoising_loss, mean_squared_error, "noisy_image", "clean_image"
    ),
    "tabular_mlp": Recipe(TabularMLP, breast_cancer, epochs=60, input_name="measurements"),
    "digits_preact": Recipe(digits_preact, digits, epochs=40),
}


def train(recipe: Recipe, data: Split) -> nn.Module:
    """Train from a fixed seed: AdamW, one cycle of the learning rate, batches of 64. Returns it in evaluation mode."""
    torch.manual_seed(SEED)
    network = recipe.network()
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    batches = len(x) // 64
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=recipe.epochs * batches)
    network.train()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(x))[: batches * 64].split(64):
            optimizer.zero_grad()
            recipe.loss(network, x[batch], y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(recipe: Recipe, network: nn.Module, x: np.ndarray, output: np.ndarray, path: Path) -> None:
    """Write the network with every norm in it, a free batch dimension, and nothing about the machine it comes from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the TorchScript exporter is deprecated, and needed here
        torch.onnx.export(
            network,
            (torch.from_numpy(x[:2]),),
            str(path),
            input_names=[recipe.input_name],
            output_names=[recipe.output_name],
            dynamic_axes={recipe.input_name: {0: "batch"}, recipe.output_name: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    model = onnx.load(path)
    for node in model.graph.node:  # where exporters put stack traces, with paths
        node.ClearField("doc_string")
    model.graph.name = path.stem
    for dimension, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], output.shape[1:], strict=True):
        dimension.dim_value = size  # after a Reshape, the exporter knows them no longer
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def make(name: str, folder: Path) -> str:
    """Train, export, write the held-out data; returns the line for the model card."""
    recipe = RECIPES[name]
    data = recipe.data()
    network = train(recipe, data)
    with torch.no_grad():
        output = network(torch.from_numpy(data.x_test)).numpy()
    export(recipe, network, data.x_test, output, folder / f"{name}.onnx")
    np.savez_compressed(folder / f"{name}_test.npz", x=data.x_test, y=data.y_test)
    return recipe.score(output, data)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the models in this folder and export them to ONNX.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all of {', '.join(RECIPES)})")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write into")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in RECIPES]
    if unknown:
        parser.error(f"no model called {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    torch.use_deterministic_algorithms(True)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or RECIPES:
        print(f"{name}: training ...", file=sys.stderr)
        start = time.perf_counter()
        figure = make(name, options.output)
        print(f"{name}: {figure}")
        print(f"{name}: took {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
