"""SimMIM: predict the pixels of masked squares with a linear decoder (Xie et al., CVPR 2022)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from nbhelpers.pretrain.objective import Objective, masked_error, options


def block_mask(
    batch: int, grid: tuple[int, int], unit: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Masks made of squares of `unit` x `unit` patches; bool `B rows columns`, true where masked.

    Every mask hides ceil(ratio x number of squares) squares, chosen uniformly.

    Raises:
        ValueError: if the squares do not tile the grid, or none would be hidden.

    Source: SimMIM, section 3.2 and figure 2 (patch-aligned random masking).

    >>> block_mask(1, (4, 4), 2, 0.5, torch.Generator().manual_seed(0)).sum()  # 2 squares of 4 patches
    tensor(8)
    """
    rows, columns = grid
    if rows % unit or columns % unit:
        raise ValueError(f"squares of {unit} x {unit} do not tile a grid of {rows} x {columns} patches")
    if not 0 < ratio <= 1:
        raise ValueError(f"a mask ratio must be above 0 and at most 1, not {ratio:g}")
    squares = (rows // unit) * (columns // unit)
    order = torch.rand(batch, squares, generator=generator, device=generator.device).argsort(dim=1)
    masked = (order < math.ceil(ratio * squares)).view(batch, rows // unit, columns // unit)
    return masked.repeat_interleave(unit, 1).repeat_interleave(unit, 2)


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Mean absolute error over the pixels of masked patches only.

    .. math:: L = \frac{\sum_{b,n} m_{bn} \sum_d |\hat x_{bnd} - x_{bnd}|}{D \sum_{b,n} m_{bn}}

    Args:
        prediction: `B N D`, D the pixel values of a patch.
        target: `B N D`.
        mask: bool `B N`, true where masked.

    Returns:
        A scalar in units of the target (standard deviations of the data set's pixels in training); NaN if
        nothing is masked.

    Raises:
        ValueError: if shapes differ.

    Source: SimMIM, equation 1.

    >>> mask = torch.tensor([[True, False]])
    >>> float(masked_l1(torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]]), mask))
    2.0
    """
    return masked_error(l1_loss, prediction, target, mask)


def patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images `B C H W` into their patches `B N D`, D = (row, column, channel) of a patch's pixels.

    >>> patches(torch.arange(4.0).view(1, 1, 2, 2), 1).flatten()
    tensor([0., 1., 2., 3.])
    """
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


@options
class SimMIM(Objective):
    """A learned token replaces masked patches before the positions are added; all tokens are encoded."""

    group = "MIM"
    mask_ratio: float = 0.6
    mask_unit: int = 2

    def __post_init__(self) -> None:
        self.patch_size, width = self.encoder.patch_embed.patch_size[0], self.encoder.embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = nn.Linear(width, self.outputs)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.decoder.weight, std=0.02)
        nn.init.zeros_(self.decoder.bias)

    @property
    def outputs(self) -> int:
        """How many numbers are predicted of a patch: its pixels in all colours."""
        return 3 * self.patch_size**2

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Prediction `B N D` from normalised images `B C H W`, patches in `mask` (bool `B N`) hidden."""
        tokens = self.encoder.patch_embed(images)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.encoder.norm(self.encoder.blocks(self.encoder._pos_embed(tokens)))
        return self.decoder(tokens[:, self.encoder.num_prefix_tokens :])

    def views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One view of uint8 images `B C H W`, and what is hidden of it (bool `B N`)."""
        (view,) = super().views(images, generator)
        grid = self.encoder.patch_embed.grid_size
        mask = block_mask(len(view), grid, self.mask_unit, self.mask_ratio, generator)
        return view, mask.flatten(1)

    def loss(self, view: Tensor, mask: Tensor) -> Tensor:
        """L1 loss on the masked pixels of normalised images `B C H W`; mask bool `B N`."""
        return masked_l1(self.predict(view, mask), patches(view, self.patch_size), mask)
