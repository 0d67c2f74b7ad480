"""Noise and filters in the frequency domain, and patch shuffling: tensors `B C H W` in and out.

Frequencies are in radians per pixel: a wave of P pixels has 2 pi / P, Nyquist is pi.
"""

import math

import torch
from einops import rearrange
from torch import Tensor


def ring_mask(size: tuple[int, int], frequency: float, half_width: float = 0.2) -> Tensor:
    """The square ring of frequencies around a centre frequency, `bool H W`, frequency 0 at (H // 2, W // 2).

    A centred box of 2 int((f + s) n / 2 pi) frequencies along an axis of n, minus a box of
    2 int((f - s) n / 2 pi); boxes are cut to the spectrum. A box reaches from -r to r - 1.

    Args:
        size: rows and columns of the image.
        frequency: centre f of the ring, radians per pixel, 0..pi.
        half_width: s, radians per pixel.

    Raises:
        ValueError: negative frequency, a width that is not positive, or a ring without any frequency.

    Source: Park and Kim (2022), How do vision transformers work?, official code, `ops/adversarial.py`.

    >>> ring_mask((4, 4), frequency=math.pi, half_width=0.5 * math.pi).int()
    tensor([[1, 1, 1, 1],
            [1, 0, 0, 1],
            [1, 0, 0, 1],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    if frequency < 0 or half_width <= 0:
        raise ValueError(f"frequency must be >= 0 and half_width > 0, got {frequency} and {half_width}")
    mask = _centred_box(size, frequency + half_width) & ~_centred_box(size, frequency - half_width)
    if not mask.any():
        ring = f"{frequency:.3f} ± {half_width:.3f} rad has no frequency of a {size[0]} x {size[1]} image"
        raise ValueError(f"the ring of {ring}; widen it or choose a frequency in 0..pi")
    return mask


def frequency_noise(
    images: Tensor, frequency: float, epsilon: float, generator: torch.Generator, half_width: float = 0.2
) -> Tensor:
    """Images plus random noise limited to a ring of frequencies, `B C H W -> B C H W`; nothing is clamped.

    x' = x + Re IFFT(M_f . FFT(delta)) with delta = epsilon sign(randn), one draw per value, and M_f the
    ring of `ring_mask`. The noise's variance is about epsilon^2 times the share of frequencies in the ring,
    so a ring carries as much of it as it holds frequencies.

    Args:
        images: floating `B C H W`.
        frequency: centre of the ring, radians per pixel, 0..pi.
        epsilon: amplitude of the noise before the ring is cut out, in units of the images.
        generator: where the noise is drawn from, on its own device, so that a GPU gets the CPU's noise.
        half_width: of the ring, radians per pixel.

    Raises:
        ValueError: images that are not finite floating `B C H W`, or a ring without any frequency.

    Source: Park and Kim (2022), official code, `ops/adversarial.py`; used in Park et al. (2023).

    The whole spectrum lets the noise through as it is:

    >>> noisy = frequency_noise(torch.zeros(1, 1, 4, 4), 0.0, 0.5, torch.Generator(), half_width=math.pi)
    >>> noisy.abs().allclose(torch.tensor(0.5))
    True
    """
    work = _checked(images)
    size = tuple(images.shape[-2:])
    mask = torch.fft.ifftshift(ring_mask(size, frequency, half_width).to(work)).to(images.device)
    # The ring is not symmetric under k -> -k; keeping the real part of the result is the same as averaging
    # the mask with its mirror image, which permits the real FFT at half the cost.
    mirrored = mask.flip(0, 1).roll((1, 1), (0, 1))
    mask = (mask + mirrored)[:, : size[1] // 2 + 1] / 2
    draw = torch.randn(images.shape, generator=generator, device=generator.device, dtype=work.dtype)
    noise = epsilon * draw.sign().to(images.device)
    return (work + torch.fft.irfft2(mask * torch.fft.rfft2(noise), s=size)).to(images.dtype)


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Keep the frequencies up to a cut-off, `B C H W -> B C H W`.

    x' = IFFT(M . FFT(x)), M = 1 where sqrt(f_y^2 + f_x^2) <= cutoff: a sharp disc.

    Args:
        images: floating `B C H W`.
        cutoff: radians per pixel; 0 leaves the mean alone, from sqrt(2) pi on everything passes.

    Raises:
        ValueError: images that are not finite floating `B C H W`, or a negative cut-off.

    >>> checks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]  # both frequencies are pi
    >>> low_pass(checks, 3.0)
    tensor([[[[0.5000, 0.5000],
              [0.5000, 0.5000]]]])
    """
    work = _checked(images)
    if not cutoff >= 0:
        raise ValueError(f"cutoff must be at least 0 radians per pixel, got {cutoff}")
    rows, columns = images.shape[-2:]
    vertical = 2 * math.pi * torch.fft.fftfreq(rows, dtype=torch.float64)
    horizontal = 2 * math.pi * torch.fft.rfftfreq(columns, dtype=torch.float64)
    # Rounding must not decide about a cut-off that lies on a frequency.
    keep = torch.hypot(vertical[:, None], horizontal) <= cutoff + 1e-9
    spectrum = torch.fft.rfft2(work) * keep.to(images.device)
    return torch.fft.irfft2(spectrum, s=(rows, columns)).to(images.dtype)


def high_pass(images: Tensor, cutoff: float) -> Tensor:
    """Keep the mean and the frequencies above a cut-off, `B C H W -> B C H W`.

    x' = x - low_pass(x) + mean(x), the mean of each image's channel, so that brightness stays what it was.

    Args:
        images: floating `B C H W`.
        cutoff: radians per pixel; 0 leaves the images as they are.

    Raises:
        ValueError: images that are not finite floating `B C H W`, or a negative cut-off.

    >>> checks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    >>> high_pass(checks, 3.0)
    tensor([[[[1., 0.],
              [0., 1.]]]])
    """
    low = low_pass(images, cutoff)
    return images - low + images.mean((-2, -1), keepdim=True)


def patch_shuffle(images: Tensor, patch_size: int | tuple[int, int], generator: torch.Generator) -> Tensor:
    """Cut images into patches and put these back in random order: shape goes, texture stays.

    Every image gets its own uniformly random permutation of its non-overlapping patches; channels move
    together.

    Args:
        images: `B C H W` of any type.
        patch_size: pixels, one number or rows and columns.
        generator: where the permutations are drawn from, on its own device.

    Raises:
        einops.EinopsError: images that are not `B C H W`, or a size that the patches do not divide.

    >>> image = torch.arange(4).reshape(1, 1, 2, 2)
    >>> rows = patch_shuffle(image, (1, 2), torch.Generator())[0, 0].tolist()
    >>> sorted(rows)
    [[0, 1], [2, 3]]
    """
    rows, columns = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    patches = rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=rows, q=columns)
    draw = torch.rand(patches.shape[:2], generator=generator, device=generator.device)
    order = draw.argsort(dim=1).to(images.device)
    shuffled = patches.gather(1, order[:, :, None].expand_as(patches))
    height = images.shape[2] // rows
    return rearrange(shuffled, "b (y x) (c p q) -> b c (y p) (x q)", y=height, p=rows, q=columns)


def _centred_box(size: tuple[int, int], frequency: float) -> Tensor:
    """`bool H W`, true from -r to r - 1 around the centre, r = int(f n / 2 pi) along each axis of n."""
    sides = []
    for length in size:
        half = max(0, int(frequency * length / (2 * math.pi)))
        place = torch.arange(length) - length // 2
        sides.append((place >= -half) & (place < half))
    return sides[0][:, None] & sides[1][None, :]


def _checked(images: Tensor) -> Tensor:
    """The images in a type that FFTs know; a ValueError unless they are finite floating `B C H W`."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating B C H W, got {images.dtype} {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError(f"images of shape {tuple(images.shape)} hold values that are not finite")
    return images.to(torch.promote_types(images.dtype, torch.float32))
