"""The data: digits and breast cancer, which come with scikit-learn, split into training and held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

SEED = 0
NOISE = 0.35  # standard deviation of the noise on the denoiser's input, where white is 1 and black is 0


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

    Training draws fresh noise for every batch (``denoising_loss`` of ``train.py``), hence clean inputs there.
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
