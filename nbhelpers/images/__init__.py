"""Sources of pictures, and filters and noise on them."""

from nbhelpers.images.photos import cifar10
from nbhelpers.images.source import ArraySource, ImageSource, MissingDataError

__all__ = ["ArraySource", "ImageSource", "MissingDataError", "cifar10"]
