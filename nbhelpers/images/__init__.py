"""Sources of pictures, and filters and noise on them."""

from nbhelpers.images.filters import frequency_noise, high_pass, low_pass, patch_shuffle, ring_mask
from nbhelpers.images.folders import folder
from nbhelpers.images.photos import cifar10, cue_conflict, cue_conflict_cifar10, photographs
from nbhelpers.images.shapes import shapes
from nbhelpers.images.source import ArraySource, ImageSource, MissingDataError
