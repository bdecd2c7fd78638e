"""Why an operator stays: every refusal code, in one table.

A refusal is a result, not an error: it has a code that scripts can match on, a sentence about the very node, and the
node that is in the way. ``bnfold explain CODE`` prints the entries of ``CODES``; ``docs/codes/`` has a page for each.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Explanation", "Refusal"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason why one affine cannot go one way.

    Attributes:
        code: key into :data:`CODES`.
        reason: one sentence that names tensors or numbers of this case.
        node: label of the blocking node, or None.
        lasting: True when it holds for any affine that comes this way, whatever its values.
    """

    code: str
    reason: str
    node: str | None = None
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a code means, why it stops the fold, and what the user can do."""

    meaning: str
    why: str
    advice: str


CODES: dict[str, Explanation] = {
    "training-mode": Explanation(
        "The batch norm is in training mode.",
        "It normalizes with the statistics of the batch it is given, so it is not a fixed affine map and "
        "there is nothing to fold.",
        "Export the model in evaluation mode (PyTorch: model.eval() before torch.onnx.export).",
    ),
    "per-activation": Explanation(
        "The batch norm has statistics per element (spatial=0) instead of per channel.",
        "Each position has its own scale and shift, and no convolution weight is per position.",
        "Train with per-channel statistics, or leave it.",
    ),
    "parameters-not-constant": Explanation(
        "A parameter of the norm is computed at run time, or is a graph input that callers may override.",
        "The folded weight would have to be computed at run time too.",
        "If nobody overrides it, fold with --freeze; else constant-fold what computes it.",
    ),
    "parameter-shape": Explanation(
        "The norm's parameters do not fit each other or the tensor.",
        "Four vectors of one length, the number of channels, are needed; anything else is an invalid model.",
        "Check the exporter.",
    ),
    "variance": Explanation(
        "variance + epsilon is zero or negative for some channel.",
        "The scale gamma / sqrt(variance + epsilon) is then infinite or not a number.",
        "Retrain or repair the running variance; check that epsilon survived the export.",
    ),
    "not-finite": Explanation(
        "A parameter, weight or folded weight is infinite or not a number.",
        "Writing it would replace a defect in one channel by a defect in a weight, or hide it.",
        "Look at the checkpoint: a running variance of zero or an overflow in training is the usual cause.",
    ),
    "overflow": Explanation(
        "A folded value does not fit its data type, or may not where the scale stands now.",
        "In float16 everything above 65504 becomes infinity, and a scale in front of a sum may be what prevents that.",
        "Fold the float32 model first and convert to float16 afterwards.",
    ),
    "underflow": Explanation(
        "A channel of the folded weight is too small for the weight's data type.",
        "Below 6e-5 a float16 loses digits one by one, and the channel would lose its precision.",
        "Fold the float32 model first and convert to float16 afterwards.",
    ),
    "no-producer": Explanation(
        "The tensor comes straight from a graph input, with no linear operator in front.",
        "There is no weight behind it that could take the scale and shift.",
        "If the norm normalizes the input, the operator after it may take it; see the other refusal, if any.",
    ),
    "blocked": Explanation(
        "An operator stands in between that a per-channel scale and shift cannot pass.",
        "Folding across it would change the result: a norm behind an activation is not a norm in front of it.",
        "Nothing to do: the norm is in a place where it cannot fold. Conv - BatchNorm - activation is the "
        "order that folds.",
    ),
    "activation": Explanation(
        "The operator is part of an activation that is written out: the Gelu, 0.5 * x * (1 + erf(x / sqrt(2))).",
        "Runtimes fuse the whole of it and know it by its shape; with a factor moved into the next layer it is one "
        "operator shorter and slower.",
        "If the target does not fuse it, fold with --fold-gelu (fold_gelu=True).",
    ),
    "sign": Explanation(
        "A scale is negative, and the operator in between passes only scales that are not.",
        "max(-x) is not -max(x): pooling and ReLU commute with positive scales only.",
        "Nothing to do; gamma was trained to that sign.",
    ),
    "shift": Explanation(
        "The scale could pass or be absorbed, but the shift cannot.",
        "The operator in between, or the one that would absorb it, is linear only through the origin.",
        "Nothing to do.",
    ),
    "padding": Explanation(
        "The norm stands before a convolution that pads with zeros, and its shift is not zero.",
        "Padded positions are zeros after the norm but would be shifted zeros before it: the border would differ.",
        "Put the norm behind the convolution when training, or pad explicitly before the norm.",
    ),
    "shared-output": Explanation(
        "The tensor has other readers than the norm, of the same channels.",
        "Those readers need the value before the norm, unless the same scale and shift stand behind all of them.",
        "Nothing to do, unless the other readers are leftovers.",
    ),
    "graph-output": Explanation(
        "The tensor is an output of the graph.",
        "Callers read it, so its value must not change.",
        "Remove the output if nobody needs it.",
    ),
    "captured": Explanation(
        "The tensor is read inside a subgraph (If, Loop or Scan), or comes from outside of it.",
        "Its value must not change for the other scope.",
        "Nothing to do.",
    ),
    "weight-not-constant": Explanation(
        "The linear operator's weight is computed at run time or can be overridden by callers.",
        "There is no fixed weight to fold into.",
        "If nobody overrides it, fold with --freeze; else constant-fold the weight.",
    ),
    "bias-not-constant": Explanation(
        "The linear operator's bias is computed at run time or can be overridden by callers.",
        "The shift has to be added to a fixed bias, and the scale would have to multiply a moving one.",
        "If nobody overrides it, fold with --freeze; else constant-fold the bias.",
    ),
    "axis": Explanation(
        "The scale and shift run along another axis than the operator's channels.",
        "A weight has one factor per channel, not per row, column or batch element.",
        "Check that the constant is shaped [C, 1, 1] rather than [C], which aligns with the last axis.",
    ),
    "shape-unknown": Explanation(
        "A rank or dimension that the fold depends on is not known.",
        "bnfold proves where channels go from shapes and does not guess from sizes that happen to agree.",
        "Run onnx shape inference, or fix the dynamic dimension that is named.",
    ),
    "broadcast": Explanation(
        "The constant is larger than the tensor, or has more axes.",
        "The operator changes the shape of the tensor, which no fold may do.",
        "Nothing to do.",
    ),
    "reshape": Explanation(
        "A Reshape mixes channels with other axes, or spreads them over several.",
        "After it, one scale per channel is no longer one scale per position on a single axis, which is what most "
        "operators let pass and all linear ones take in.",
        "Nothing to do.",
    ),
    "quantized": Explanation(
        "The operator or its weight is quantized in a form that cannot take a scale exactly, or stands in between.",
        "Rescaling would need integers to be rounded again, run-time statistics, or what integer kernels do not take.",
        "Fold before quantizing: bnfold first, then the quantizer.",
    ),
    "function": Explanation(
        "The norm stands in a model-local function whose weights come from the calls, or behind one that is opaque.",
        "One body serves calls with different weights; one with the name of an operator is not what runtimes run.",
        "Inline the function (onnx.inliner) and fold again.",
    ),
    "no-gain": Explanation(
        "The operator could be moved, but the model would not have fewer operators.",
        "Moving an addition from one place to another is not worth a change.",
        "Nothing to do.",
    ),
    "too-far": Explanation(
        "No linear operator was found within the search distance.",
        "The search is bounded so that planning stays linear in the size of the model.",
        "Report the model if you think it should fold.",
    ),
    "excluded": Explanation(
        "The operator was excluded by an option (--skip).",
        "You asked for it.",
        "Drop the option.",
    ),
    "withdrawn": Explanation(
        "The fold was made, failed verification, and was taken back.",
        "The proof found a difference beyond rounding at this very place.",
        "Please report the model; the rest of the result is verified.",
    ),
}
