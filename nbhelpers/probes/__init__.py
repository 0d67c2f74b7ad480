"""What can be read off frozen features, and what fine-tuning makes of them."""

from nbhelpers.probes.features import features, patch_tokens
from nbhelpers.probes.knn import knn_accuracy, knn_by_depth, knn_predict

__all__ = ["features", "knn_accuracy", "knn_by_depth", "knn_predict", "patch_tokens"]
