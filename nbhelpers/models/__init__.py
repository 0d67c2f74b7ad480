"""Encoders: Vision Transformers with token layout, preprocessing and provenance."""

from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import (
    ChecksumError,
    DamagedWeights,
    DownloadError,
    MismatchedWeights,
    UnsafeWeights,
    UnsupportedArchitecture,
    WeightsError,
)
from nbhelpers.models.mae import DECODER, MaskedAutoencoder, decoder_of, without_decoder
from nbhelpers.models.mini import mini_vit
from nbhelpers.models.registry import CHECKPOINTS, Checkpoint, available, load
from nbhelpers.models.store import manifest, save_encoder
