"""MAE: predict the pixels of hidden patches with a transformer decoder (He et al., CVPR 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from nbhelpers.models import Encoder, MaskedAutoencoder
from nbhelpers.models.mini import StandardisedPatchEmbed
from nbhelpers.pretrain.objective import Objective, masked_error, options


def kept_patches(batch: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Indices `B K` of the patches that stay visible: K = floor(patches x (1 - ratio)), drawn uniformly.

    Raises:
        ValueError: if nothing would be visible, or nothing hidden.

    Source: MAE, section 3 (random sampling without replacement).

    >>> kept_patches(1, 64, 0.75, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 16])
    """
    count = int(patches * (1 - ratio))
    if not 0 < count < patches:
        raise ValueError(f"mask ratio {ratio} leaves {count} of {patches} patches visible")
    drawn = torch.rand(batch, patches, generator=generator, device=generator.device)
    return drawn.argsort(dim=1)[:, :count]


def normalised_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Every patch with mean 0 and deviation 1 over its pixels and channels; `B N D` -> `B N D`.

    .. math:: \tilde x_d = \frac{x_d - \bar x}{\sqrt{s^2 + \epsilon}}, \quad
        s^2 = \frac{1}{D - 1} \sum_d (x_d - \bar x)^2

    Source: MAE, section 3, and its code (`norm_pix_loss`), whose variance is the unbiased one.

    >>> normalised_patches(torch.tensor([[[1.0, 2.0, 3.0]]])).round(decimals=3)
    tensor([[[-1.,  0.,  1.]]])
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def hidden_mse(prediction: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Mean squared error over the patches that were hidden from the encoder.

    .. math:: L = \frac{1}{|H| D} \sum_{(b, n) \in H} \sum_d (\hat x_{bnd} - x_{bnd})^2

    Args:
        prediction: `B N D`.
        target: `B N D`.
        keep: indices `B K` of the visible patches, K < N; H holds the others.

    Returns:
        A scalar in squared units of the target: 1 - 1/D for predicting the mean of normalised patches; NaN if
        nothing is hidden.

    Raises:
        ValueError: if shapes differ.

    Source: MAE, section 3.

    >>> target = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    >>> float(hidden_mse(torch.zeros(1, 2, 2), target, keep=torch.tensor([[1]])))  # (1 + 9) / 2
    5.0
    """
    if keep.ndim != 2 or len(keep) != len(target):
        raise ValueError(f"need target B N D and keep B K; got {tuple(target.shape)}, {tuple(keep.shape)}")
    hidden = torch.ones_like(target[..., 0], dtype=torch.bool).scatter(1, keep, False)
    return masked_error(mse_loss, prediction, target, hidden)


@torch.no_grad()
def reconstruct(
    encoder: Encoder, images: Tensor, mask_ratio: float = 0.75, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Visible patches of uint8 images `B C H W`, and the images with the hidden patches predicted.

    The decoder predicts patches of mean 0 and deviation 1, :math:`\tilde x`; mean and deviation of a hidden
    patch are borrowed from the image, as nothing predicts them: :math:`\hat x = \tilde x s + \bar x`. One
    whose patches are not `normalised`, as the public ones, predicts :math:`\hat x`.

    Args:
        encoder: one with a decoder, such as "shapes.mae".
        images: uint8 `B C H W`, of the encoder's size.
        mask_ratio: share of the patches that are hidden.
        seed: of the choice.

    Returns:
        Two uint8 tensors `B C H W`: visible patches on grey, and visible patches amid predicted ones.

    Raises:
        TypeError: if the encoder has no decoder.

    Source: MAE, section 3 and figure 2.
    """
    autoencoder = encoder.module
    if not isinstance(autoencoder, MaskedAutoencoder):
        raise TypeError(f"{encoder.name} has no decoder, so it cannot reconstruct an image")
    pixels = images.to(encoder.device).float() / 255
    if isinstance(autoencoder.encoder.patch_embed, StandardisedPatchEmbed):
        centre = pixels.mean((2, 3), keepdim=True)
        scale = (pixels - centre).square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-3)
    else:
        centre, scale = (pixels.new_tensor(x)[:, None, None] for x in (encoder.mean, encoder.std))
    patches = autoencoder.patchify((pixels - centre) / scale)
    generator = torch.Generator().manual_seed(seed)
    keep = kept_patches(*patches.shape[:2], mask_ratio, generator).to(encoder.device)
    hidden = torch.ones_like(patches[..., :1], dtype=torch.bool).scatter(1, keep[..., None], False)
    predicted = autoencoder(autoencoder.unpatchify(patches), keep)
    if autoencoder.normalised:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        predicted = predicted * variance.sqrt() + mean
    filled = autoencoder.unpatchify(torch.where(hidden, predicted, patches))
    grey = autoencoder.unpatchify(hidden.expand_as(patches).float())
    shown = torch.where(grey.bool(), 0.5, pixels)
    both = shown, filled * scale + centre
    return tuple((x * 255).round().clamp(0, 255).to(torch.uint8).cpu() for x in both)


@options
class MAE(Objective):
    """The encoder sees visible patches alone; a narrow decoder with mask tokens predicts the hidden ones."""

    group = "MIM"
    decoder: Mapping[str, int]
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        self.autoencoder = MaskedAutoencoder(self.encoder, **self.decoder)

    @property
    def saved(self) -> MaskedAutoencoder:
        """Encoder and decoder."""
        return self.autoencoder

    def views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One view of uint8 images `B C H W`, and the indices `B K` of what is visible of it."""
        (view,) = super().views(images, generator)
        patches = self.encoder.patch_embed.num_patches
        return view, kept_patches(len(view), patches, self.mask_ratio, generator)

    def loss(self, view: Tensor, keep: Tensor) -> Tensor:
        """Squared error of normalised hidden patches of normalised images `B C H W`; keep `B K`."""
        target = normalised_patches(self.autoencoder.patchify(view))
        return hidden_mse(self.autoencoder(view, keep), target, keep)
