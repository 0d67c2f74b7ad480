"""What can be read off frozen features, and what fine-tuning makes of them."""

from nbhelpers.probes.attentive import attentive_by_depth, fit_attentive
from nbhelpers.probes.components import components_by_share, principal_components
from nbhelpers.probes.dense import dense_by_depth, mean_iou
from nbhelpers.probes.finetune import FineTuning, classify, fine_tune, fine_tuning_by_share, reinitialise
from nbhelpers.probes.layers import features
from nbhelpers.probes.linear import fit_linear, knn_by_depth, knn_predict, linear_by_depth
from nbhelpers.probes.noise import robustness_by_depth
from nbhelpers.probes.shape_bias import shape_bias, shape_bias_by_depth
from nbhelpers.probes.structure import cka_by_depth, silhouette_by_depth, token_map
