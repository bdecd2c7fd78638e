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
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 0
OPSET = 17
NOISE = 0.35  # standard deviation of the noise on the denoiser's input, where white is 1 and black is 0


# --- Data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training and held-out data: ``x`` float32 with the samples first, ``y`` int64 labels or float32 targets."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits() -> Split:
    """Digits as ``[N, 1, 8, 8]`` images from 0 to 1; 450 of the 1,797 are held out, the same share of every class."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return _split(x, labels.astype(np.int64), test_size=450)


def noisy_digits() -> Split:
    """The same split with the clean image as the target, and Gaussian noise on the held-out inputs only.

    Training draws fresh noise for every batch (see :func:`denoising_loss`), hence clean inputs there.
    """
    data = digits()
    noise = np.random.default_rng(SEED).normal(0, NOISE, data.x_test.shape)
    return Split(data.x_train, data.x_train, (data.x_test + noise).astype(np.float32), data.x_test)


def breast_cancer() -> Split:
    """The 30 raw measurements as ``[N, 30]``, not standardised; 200 of the 569 are held out. 1 means benign."""
    x, labels = load_breast_cancer(return_X_y=True)
    return _split(x.astype(np.float32), labels.astype(np.int64), test_size=200)


def _split(x: np.ndarray, y: np.ndarray, *, test_size: int) -> Split:
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_size, stratify=y, random_state=SEED)
    return Split(x_train, y_train, x_test, y_test)


# --- Networks ----------------------------------------------------------------------------------------------------


def norm_relu(linear: nn.Module, channels: int, name: str) -> nn.Sequential:
    """A linear layer with a norm and a ReLU behind it; the names show in the exported graph (``/stem/conv/Conv``)."""
    return nn.Sequential(OrderedDict({name: linear, "norm": nn.BatchNorm2d(channels), "relu": nn.ReLU()}))


def conv_norm_relu(inputs: int, outputs: int, kernel: int, **options: int | bool) -> nn.Sequential:
    return norm_relu(nn.Conv2d(inputs, outputs, kernel, **options), outputs, "conv")


def deconv_norm_relu(inputs: int, outputs: int, kernel: int, **options: int | bool) -> nn.Sequential:
    return norm_relu(nn.ConvTranspose2d(inputs, outputs, kernel, **options), outputs, "deconv")


def digits_cnn() -> nn.Module:
    """Five Conv-BN-ReLU: plain, depthwise, pointwise, grouped with a stride, and one whose Conv has a bias."""
    layers = {
        "stem": conv_norm_relu(1, 16, 3, padding=1, bias=False),
        "depthwise": conv_norm_relu(16, 16, 3, padding=1, groups=16, bias=False),
        "pointwise": conv_norm_relu(16, 32, 1, bias=False),
        "grouped": conv_norm_relu(32, 32, 3, padding=1, stride=2, groups=4, bias=False),
        "biased": conv_norm_relu(32, 48, 3, padding=1, bias=True),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(48, 10),
    }
    return nn.Sequential(OrderedDict(layers))


class DigitsAutoencoder(nn.Module):
    """Two Conv-BN-ReLU and a Linear down to 24 numbers; then Linear-BN-ReLU and three ConvTranspose-BN-ReLU.

    The transposed convolutions are a plain one, a depthwise one, and a grouped one with a bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm_relu(1, 16, 3, padding=1, stride=2, bias=False)
        self.down2 = conv_norm_relu(16, 32, 3, padding=1, stride=2, bias=False)
        self.encode = nn.Linear(128, 24)
        self.decode = nn.Linear(24, 128)
        self.decode_norm = nn.BatchNorm1d(128)
        self.up1 = deconv_norm_relu(32, 16, 4, padding=1, stride=2, bias=False)
        self.smooth = deconv_norm_relu(16, 16, 3, padding=1, groups=16, bias=False)
        self.up2 = deconv_norm_relu(16, 16, 4, padding=1, stride=2, groups=2, bias=True)
        self.image = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encode(self.down2(self.down1(x)).flatten(1))
        x = self.decode_norm(self.decode(code)).relu().reshape(-1, 32, 2, 2)
        return self.image(self.up2(self.smooth(self.up1(x)))).sigmoid()


class MatrixProduct(nn.Module):
    """``x @ weight + bias`` with ``weight[inputs, outputs]``, which exports as MatMul and Add, not as Gemm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight.T, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class TabularMLP(nn.Module):
    """Four linear layers with a norm behind each, in the four forms in which exporters write them.

    A norm on the raw input standardises it. Then: Linear (Gemm), ``x @ w + b`` (MatMul-Add), a Linear shared by five
    groups of eight units (rank 3: MatMul-Add between two Transposes, since BatchNorm1d has its channels on axis 1),
    and a Linear without bias (MatMul).
    """

    def __init__(self) -> None:
        super().__init__()
        # The smallest of the raw variances is 7e-6, so the usual epsilon of 1e-5 would drown it. The cumulative
        # average (momentum None) makes the running statistics those of the whole training set.
        self.standardise = nn.BatchNorm1d(30, eps=1e-10, momentum=None)
        self.embed = nn.Linear(30, 40)
        self.embed_norm = nn.BatchNorm1d(40)
        self.mix = MatrixProduct(40, 40)
        self.mix_norm = nn.BatchNorm1d(40)
        self.group = nn.Linear(8, 16)
        self.group_norm = nn.BatchNorm1d(16)
        self.merge = nn.Linear(80, 16, bias=False)
        self.merge_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed_norm(self.embed(self.standardise(x))).relu()
        x = self.mix_norm(self.mix(x)).relu()
        x = self.group(x.reshape(-1, 5, 8))
        x = self.group_norm(x.transpose(1, 2)).transpose(1, 2).relu()
        x = self.merge_norm(self.merge(x.flatten(1))).relu()
        return self.head(x)


class PreactivationBlock(nn.Module):
    """BN-ReLU-Conv twice around a shortcut; where the shape changes, the shortcut is a 1x1 Conv of the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.norm1(x).relu()
        inner = self.conv2(self.norm2(self.conv1(active)).relu())
        return inner + (x if self.shortcut is None else self.shortcut(active))


def digits_preact() -> nn.Module:
    """Conv, three pre-activation blocks (the first with an identity shortcut), and a last norm before the pooling."""
    layers = {
        "stem": nn.Conv2d(1, 16, 3, padding=1, bias=False),
        "block1": PreactivationBlock(16, 16),
        "block2": PreactivationBlock(16, 24, stride=2),
        "block3": PreactivationBlock(24, 32, stride=2),
        "norm": nn.BatchNorm2d(32),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(32, 10),
    }
    return nn.Sequential(OrderedDict(layers))


# --- Training ----------------------------------------------------------------------------------------------------


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
