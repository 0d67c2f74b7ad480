"""What can be read off frozen features, and what fine-tuning makes of them."""

from nbhelpers.probes.features import features, patch_tokens
from nbhelpers.probes.knn import knn_accuracy, knn_by_depth, knn_predict
from nbhelpers.probes.linear import LinearProbe, fit_linear, linear_by_depth

__all__ = [
    "LinearProbe",
    "features",
    "fit_linear",
    "knn_accuracy",
    "knn_by_depth",
    "knn_predict",
    "linear_by_depth",
    "patch_tokens",
]
