"""Random views of whole batches as tensor operations: crop, flip, colour; no worker processes."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize

from nbhelpers.images.source import Triple
from nbhelpers.models.mini import standardise

# Rows: luma and the two chroma axes of the YIQ colour space; hue is an angle in the plane of the last two.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_LUMA = _YIQ[0].tolist()
# An image's colours keep their luma while chroma is scaled by s and turned by t: the matrix K + s cos(t) C +
# s sin(t) S. Python numbers, since a constant tensor would have to be copied to the device.
_KEPT, _SCALED, _TURNED = (
    (torch.linalg.inv(_YIQ) @ torch.tensor(chroma) @ _YIQ).flatten().tolist()
    for chroma in (
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
    )
)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a view: of MoCo v3's recipe, crop, flip, jitter and grey, with its probabilities.

    Crops are larger, from 0.2 of the area on (there 0.08); its blur and solarisation are left out.
    `colour` is "none", "jitter" (brightness, contrast, saturation, hue; for photographs) or "orthogonal" (see
    `orthogonal_colour`; for generated images, whose colours alone would give them away).
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    colour: Literal["none", "jitter", "orthogonal"] = "none"
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view per image: uint8 or float `B C H W` -> float `B C H W` on the scale 0..1."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        views = random_resized_crop(images, self, generator)
        if self.colour == "jitter":
            return colour_jitter(views, self, generator)
        return orthogonal_colour(views, generator) if self.colour == "orthogonal" else views


class View(nn.Module):
    """A random view of images, normalised: mean 0 and deviation 1.

    Args:
        augmentation: what may happen to it.
        mean: per-channel mean of all training images on the scale 0..1.
        std: per-channel standard deviation likewise.
        standardised: normalise each image by itself instead, as the encoder does.
    """

    def __init__(
        self, augmentation: Augmentation, mean: Triple, std: Triple, standardised: bool = False
    ) -> None:
        super().__init__()
        self.augmentation, self.standardised = augmentation, standardised
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A view per image: uint8 `B C H W` -> float `B C H W`; `generator` is all that is random."""
        views = self.augmentation(images, generator)
        return standardise(views) if self.standardised else (views - self.mean) / self.std


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """A number in low..high for each of the images, `B`."""
    return low + (high - low) * torch.rand(len(images), device=images.device, generator=generator)


def random_resized_crop(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop a random box of each image and resize it to the full size, mirrored half of the time if `flip`.

    The box's share of the area is uniform in `crop_scale`, the logarithm of its aspect ratio uniform in
    `crop_ratio`, its place uniform among those inside the image; a side longer than the image's is cut to it,
    so that nearly whole images are rarer than the share says. `B C H W` -> `B C H W`, bilinear.

    >>> image = torch.rand(1, 3, 8, 8)
    >>> whole = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=False)
    >>> torch.allclose(random_resized_crop(image, whole, torch.Generator()), image, atol=1e-5)
    True
    """
    uniform = partial(_uniform, images, generator)
    area = uniform(*how.crop_scale)
    aspect = uniform(*map(math.log, how.crop_ratio)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if how.flip else 1.0
    zero = torch.zeros_like(width)
    theta = torch.stack([width * mirror, zero, left, zero, height, top], dim=1).view(-1, 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def colour_jitter(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and hue, then random greyscale; `B 3 H W` -> `B 3 H W` in 0..1.

    All of it is one linear map of each image's colours, so one small matrix product does it. `jitter` holds
    the half-widths of the four ranges; hue in turns.

    >>> grey = colour_jitter(torch.rand(1, 3, 4, 4), Augmentation(grey_probability=1), torch.Generator())
    >>> bool((grey[:, 0] - grey[:, 2]).abs().max() < 1e-3)
    True
    """
    uniform = partial(_uniform, images, generator)
    on = (uniform(0, 1) < how.jitter_probability).float()
    *ranges, hue = how.jitter
    brightness, contrast, saturation = (1 + on * uniform(-s, s) for s in ranges)
    turn = 2 * math.pi * on * uniform(-hue, hue)
    saturation = saturation * (uniform(0, 1) >= how.grey_probability)
    cos, sin = saturation * torch.cos(turn), saturation * torch.sin(turn)
    entries = [k + c * cos + s * sin for k, c, s in zip(_KEPT, _SCALED, _TURNED, strict=True)]
    matrix = torch.stack(entries, 1).view(-1, 3, 3)
    gain = (brightness * contrast).view(-1, 1, 1)
    luma = sum(w * mean for w, mean in zip(_LUMA, images.mean((2, 3)).unbind(1), strict=True))
    offset = (brightness * (1 - contrast) * luma).view(-1, 1, 1, 1)
    return (torch.einsum("bcd,bdhw->bchw", gain * matrix, images) + offset).clamp(0, 1)


def orthogonal_colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate or mirror each image's colours about its mean colour, at random; `B 3 H W` -> `B 3 H W`.

    The result is mean + Q (x - mean), with Q a uniformly random orthogonal 3 x 3 matrix: distances between
    the colours of an image stay, which colours they are does not. Values may leave 0..1.

    >>> image = torch.rand(1, 3, 8, 8)
    >>> view = orthogonal_colour(image, torch.Generator().manual_seed(0))
    >>> torch.allclose(view.mean((2, 3)), image.mean((2, 3)), atol=1e-5)
    True
    """
    gaussian = torch.randn(len(images), 3, 3, device=images.device, generator=generator)
    # Its QR factor by Gram-Schmidt: on a GPU a batched QR takes the matrices in turn.
    one, two, three = gaussian.unbind(2)
    one = normalize(one, dim=1)
    two = normalize(two - (two * one).sum(1, keepdim=True) * one, dim=1)
    normal = torch.linalg.cross(one, two, dim=1)
    q = torch.stack([one, two, normal * (three * normal).sum(1, keepdim=True).sign()], dim=2)
    mean = images.mean((2, 3), keepdim=True)
    return mean + torch.einsum("bcd,bdhw->bchw", q, images - mean)
