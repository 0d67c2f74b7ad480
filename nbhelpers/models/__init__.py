"""Encoders: Vision Transformers with token layout, preprocessing and provenance."""

from nbhelpers.models.encoder import Encoder, UnsupportedArchitecture, wrap
from nbhelpers.models.loading import available, load
from nbhelpers.models.mini import mini_vit
from nbhelpers.models.store import ChecksumError, manifest, save_encoder

__all__ = [
    "ChecksumError",
    "Encoder",
    "UnsupportedArchitecture",
    "available",
    "load",
    "manifest",
    "mini_vit",
    "save_encoder",
    "wrap",
]
