"""Generated images: the same whatever the batch, independent labels, masks that fit."""

import math

import pytest
import torch
from torch.testing import assert_close

from nbhelpers.images.shapes import (
    BLOCK,
    SHAPES,
    SPLITS,
    TEXTURES,
    generate_block,
    pink_noise,
    shape_distance,
    shapes,
    texture_field,
)


@pytest.fixture(scope="module")
def made():
    blocks = [generate_block("val", number) for number in range(4)]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


# One byte each of the first images of "val", on the object or beside it; every texture is among them.
BYTES = """
166 137 67 94 123 143 95 148 182 93 20 198 74 97 192 161 1 123 52 162
155 202 131 25 175 174 166 138 134 104 144 102 129 105 140 189 76 230 83 71
87 103 19 125 56 91 185 133 183 171 160 127 123 15 151 40 144 217 109 53
""".split()


def test_images_stay_what_they_were_since_trainings_and_tables_know_them_by_their_labels(made):
    image = torch.arange(len(BYTES))
    found = made["image"][image, 0, 16, 2 + 7 * (image % 5)]
    # Machines round differently.
    assert_close(found.float(), torch.tensor([float(byte) for byte in BYTES]), atol=2, rtol=0)


def test_a_split_is_made_of_its_blocks_once(made, monkeypatch):
    monkeypatch.setitem(SPLITS, "val", 2 * BLOCK)
    source = shapes("val")
    two = {name: values[: 2 * BLOCK] for name, values in made.items()}
    assert torch.equal(source.images, two["image"]) and torch.equal(source.masks, two["mask"])
    assert all(torch.equal(source.labels[name], two[name]) for name in ("shape", "texture"))
    monkeypatch.setitem(shapes.__globals__, "save_file", None)
    assert shapes("val").fingerprint == source.fingerprint
    assert not torch.equal(generate_block("test", 0)["image"], made["image"][:BLOCK])


def test_nuisance_and_rendering_change_background_and_noise_and_nothing_else(made):
    settings = [(0.0, 0), (3.0, 0), (2.0, 0), (2.0, 1), (2.0, 2), (0.0, 1)]
    blocks = [generate_block("val", 0, *setting) for setting in settings]
    for name in ("shape", "texture", "mask"):
        assert all(torch.equal(block[name], made[name][:BLOCK]) for block in blocks)
    assert torch.equal(blocks[0]["image"], blocks[-1]["image"])
    x_0, x_3, *rendered = (block["image"].float() for block in blocks[:-1])
    x_1 = made["image"][:BLOCK].float()
    inside = torch.stack([(x > 0) & (x < 255) for x in (x_0, x_1, x_3)]).all(0)  # else it is clipped
    assert inside.float().mean() > 0.9
    assert_close(((x_3 - x_0) - 3 * (x_1 - x_0))[inside], torch.zeros(int(inside.sum())), atol=2.5, rtol=0)
    ground = ~made["mask"][:BLOCK, None].expand_as(x_0)
    assert (x_3 - x_0)[ground].std() > 2 * (x_3 - x_0)[~ground].std()
    nuisances = torch.stack([(x - x_0)[ground] for x in rendered])
    correlation = torch.corrcoef(nuisances)
    assert correlation.fill_diagonal_(0).abs().max() < 0.02  # 0.5 million pixels, in fields of some dozen
    deviations = nuisances.std(1)
    assert deviations.max() < 1.05 * deviations.min()


def test_images_of_another_nuisance_or_rendering_are_others_under_another_name(monkeypatch):
    monkeypatch.setitem(SPLITS, "val", BLOCK)
    usual, other = shapes("val"), shapes("val", nuisance=3, rendering=1)
    assert torch.equal(other.images, generate_block("val", 0, 3, 1)["image"])
    assert (usual.name, other.name) == ("shapes/val", "shapes/val, nuisance 3, rendering 1")
    assert (usual.mean, usual.std) == (other.mean, other.std)


@pytest.mark.parametrize(
    ("split", "nuisance"), [("val", -1), ("val", math.nan), ("val", math.inf), ("valid", 1)]
)
def test_other_splits_and_what_is_no_amplitude_are_refused(split, nuisance):
    with pytest.raises(ValueError, match="'valid'" if split == "valid" else "amplitude"):
        shapes(split, nuisance)


def test_shape_and_texture_are_independent_labels(made):
    table = torch.zeros(len(SHAPES), len(TEXTURES))
    table.index_put_((made["shape"], made["texture"]), torch.ones(len(made["shape"])), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    assert chi2 < 126  # 99.9 % point of chi-squared with 81 degrees of freedom
    assert table.min() > 0


def test_images_are_bytes_with_an_object_of_fair_size(made):
    assert made["image"].dtype == torch.uint8 and made["image"].shape == (4 * BLOCK, 3, 32, 32)
    share = made["mask"].float().mean((1, 2))
    assert share.min() > 0.05 and share.max() < 0.6


def test_the_object_stands_out_from_its_ground(made):
    stripes = made["texture"] == TEXTURES.index("stripes")
    image = made["image"][stripes].float().mean(1)
    mask = made["mask"][stripes]
    inside = torch.stack([i[m].std() for i, m in zip(image, mask, strict=True)])
    outside = torch.stack([i[~m].std() for i, m in zip(image, mask, strict=True)])
    assert (inside > 2 * outside).float().mean() > 0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouettes_are_inside_near_their_middle_and_outside_far_away(shape):
    far = shape_distance(torch.tensor([3.0, -3.0]), torch.tensor([3.0, 3.0]), shape)
    ticks = torch.linspace(-1.3, 1.3, 261)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    inside = (shape_distance(x, y, shape) < 0).float()
    assert bool((far > 0).all())
    assert 0.1 < inside.mean() < 0.5
    assert inside[0].sum() + inside[-1].sum() + inside[:, 0].sum() + inside[:, -1].sum() == 0


def test_silhouettes_of_known_area():
    ticks = torch.linspace(-1, 1, 801)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    areas = {s: 4 * (shape_distance(x, y, s) < 0).double().mean().item() for s in ("disc", "square", "ring")}
    assert areas["disc"] == pytest.approx(torch.pi * 0.85**2, rel=0.01)
    assert areas["square"] == pytest.approx(1.5**2, rel=0.01)
    assert areas["ring"] == pytest.approx(torch.pi * (0.92**2 - 0.48**2), rel=0.01)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_stay_in_range_and_vary(texture):
    ticks = torch.linspace(-4, 4, 64)
    v, u = (t[None] for t in torch.meshgrid(ticks, ticks, indexing="ij"))
    field = texture_field(u, v, texture, torch.Generator().manual_seed(0))
    assert field.shape == (1, 64, 64)
    assert -0.02 <= field.min()
    assert field.max() <= 1.02
    assert field.std() > 0.1


def test_pink_noise_has_amplitude_one_over_frequency():
    field = pink_noise(512, 32, 32, 1.0, torch.Generator().manual_seed(0))
    power = torch.fft.fft2(field).abs().pow(2).mean(0)[0]
    assert_close(power[2] / power[8], torch.tensor(16.0), rtol=0.15, atol=0)
