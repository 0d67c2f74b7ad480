"""`shapes`: generated 32 px images of one object, whose shape and texture are independent labels.

Images are made in blocks of `BLOCK`, each with its own seed: an image depends on its split and index alone.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from tqdm import tqdm

from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images.source import ArraySource

SIZE = 32
SUPERSAMPLING = 2
SENSOR_NOISE = 0.02
BLOCK = 250
TEXTURES = (
    "stripes", "checks", "dots", "zigzag", "rings",
    "1/f noise", "white noise", "bricks", "crosshatch", "plain",
)  # fmt: skip
SPLITS = {"train": 100_000, "val": 5_000, "test": 10_000}
_SEEDS = {"train": 1, "val": 2, "test": 3}
_RENDERING = 100_000_007  # from one rendering's seeds to the next one's, far beyond those of all splits
# Mean and standard deviation of the training split, per channel, on the scale 0..1.
MEAN = (0.4999, 0.4992, 0.4996)
STD = (0.1971, 0.1971, 0.1971)


def shape_distance(x: Tensor, y: Tensor, shape: str) -> Tensor:
    """Signed distance (negative inside) from points to the outline of a silhouette.

    Coordinates are in units of the object's radius, y downwards; `x`, `y` and the result share any shape.
    Away from the outline some silhouettes give a bound of the distance, which anti-aliasing does not notice.

    >>> shape_distance(torch.tensor([0.0]), torch.tensor([0.0]), "square")
    tensor([-0.7500])
    """
    return SILHOUETTES[shape](x, y, torch.hypot(x, y))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Distance to the farthest of three edges."""
    edges = [math.pi / 2 + 2 * math.pi * k / 3 for k in range(3)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) for a in edges]).amax(0) - 0.5


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """Distance to a rectangle, from half its width and height."""
    return torch.maximum(x.abs() - width, y.abs() - height)


def _star(x: Tensor, y: Tensor, points: int, inner: float) -> Tensor:
    """Distance to the line from an outer to an inner corner, after folding all sectors onto one."""
    sector = math.pi / points
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector, 2 * sector) - sector).abs()
    radius = torch.hypot(x, y)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    ex, ey = inner * math.cos(sector) - 1.0, inner * math.sin(sector)
    return (ey * (px - 1.0) - ex * py) / math.hypot(ex, ey)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a heart built of two half discs and a square corner (after I. Quilez's construction)."""
    px, py = x.abs() / 1.6, 0.62 - y / 1.6
    lobe = torch.hypot(px - 0.25, py - 0.75) - math.sqrt(2) / 4
    edge = 0.5 * (px + py).clamp(min=0)
    corner = torch.minimum(torch.hypot(px, py - 1), torch.hypot(px - edge, py - edge)) * torch.sign(px - py)
    return 1.6 * torch.where(py + px > 1, lobe, corner)


# Distance to each outline, from coordinates x, y and the radius r.
SILHOUETTES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y, r: r - 0.85,
    "triangle": lambda x, y, r: _triangle(x, y),
    "square": lambda x, y, r: _box(x, y, 0.75, 0.75),
    "star": lambda x, y, r: _star(x, y, points=5, inner=0.42),
    "cross": lambda x, y, r: torch.minimum(_box(x, y, 0.3, 0.95), _box(x, y, 0.95, 0.3)),
    "ring": lambda x, y, r: (r - 0.7).abs() - 0.22,
    "crescent": lambda x, y, r: torch.maximum(r - 0.95, 0.75 - torch.hypot(x - 0.45, y)),
    "bar": lambda x, y, r: _box(x, y, 0.33, 1.0),
    "gear": lambda x, y, r: r - (0.78 + 0.17 * torch.tanh(4 * torch.cos(8 * torch.atan2(y, x)))),
    "heart": lambda x, y, r: _heart(x, y),
}
SHAPES = tuple(SILHOUETTES)


def texture_field(u: Tensor, v: Tensor, texture: str, generator: torch.Generator) -> Tensor:
    """Pattern value in 0..1 at points given in wavelengths of the texture; `u`, `v` and result `B H W`.

    The two noises draw from `generator` and do not look at the coordinates.

    >>> u, v = torch.tensor([[[0.25]]]), torch.zeros(1, 1, 1)
    >>> texture_field(u, v, "stripes", torch.Generator()).round(decimals=2)  # the crest of a sine
    tensor([[[1.]]])
    """
    if texture == "1/f noise":
        return (0.5 + 0.25 * pink_noise(*u.shape, exponent=1.0, generator=generator)).clamp(0, 1)
    if texture == "white noise":
        pixels = torch.rand(u.shape[0], 1, SIZE, SIZE, generator=generator)
        return interpolate(pixels, size=u.shape[-2:], mode="nearest")[:, 0]
    if texture == "plain":
        return (0.5 + 0.12 * v).clamp(0, 1)
    return 0.5 + 0.5 * torch.tanh(2.5 * WAVES[texture](u, v)) / math.tanh(2.5)


def _cell(t: Tensor) -> Tensor:
    """Signed distance to the nearest whole number, -0.5..0.5."""
    return t - torch.round(t)


def _bricks(u: Tensor, v: Tensor) -> Tensor:
    """Joints, every other row shifted by half a brick."""
    row = torch.floor(v)
    joint = torch.minimum(0.5 - _cell(v).abs(), 2 * (0.5 - _cell(0.5 * u + 0.5 * (row % 2)).abs()))
    return 8 * (joint - 0.14)


# Patterns before they are made steep and brought to 0..1.
WAVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stripes": lambda u, v: torch.sin(2 * math.pi * u),
    "checks": lambda u, v: 2 * torch.sin(math.pi * u) * torch.sin(math.pi * v),
    "dots": lambda u, v: 6 * (0.32 - torch.hypot(_cell(u), _cell(v))),
    "zigzag": lambda u, v: torch.sin(2 * math.pi * (u + 0.8 * _cell(0.5 * v).abs())),
    "rings": lambda u, v: torch.sin(2 * math.pi * torch.hypot(u, v)),
    "bricks": _bricks,
    "crosshatch": lambda u, v: 9 * (0.13 - torch.minimum(*(_cell(0.7 * w).abs() for w in (u + v, u - v)))),
}


def pink_noise(batch: int, height: int, width: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Gaussian fields `B H W` whose amplitude falls as 1 / frequency**exponent, mean 0 and deviation 1.

    >>> field = pink_noise(2, 8, 8, 1.0, torch.Generator().manual_seed(0))
    >>> tuple(field.shape), bool(field.mean((1, 2)).abs().max() < 1e-6)
    ((2, 8, 8), True)
    """
    spectrum = torch.fft.rfft2(torch.randn(batch, height, width, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = math.inf
    field = torch.fft.irfft2(spectrum / frequency**exponent, s=(height, width))
    return field / field.std((1, 2), keepdim=True)


def generate_block(split: str, block: int, nuisance: float = 1.0, rendering: int = 0) -> dict[str, Tensor]:
    """The images of one block: `image` uint8 B 3 32 32, `shape` and `texture` int64 B, `mask` bool B 32 32.

    A pixel belongs to the mask where the object covers at least half of it. `nuisance` scales the amplitude
    of the background's field and of the sensor noise, `rendering` is which draw of the two it is; all else of
    an image is the same at every value of both.
    """
    seed = 1_000_003 * _SEEDS[split] + block
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(BLOCK, *size, generator=generator)

    shape = torch.randint(len(SHAPES), (BLOCK,), generator=generator)
    texture = torch.randint(len(TEXTURES), (BLOCK,), generator=generator)
    centre, angle = uniform(-3, 3, 2, 1, 1), uniform(-0.3, 0.3, 1, 1)
    radius, aspect = uniform(10, 14, 1, 1), uniform(0.85, 1.18, 1, 1)
    wavelength, turn, phase = uniform(4.5, 7, 1, 1), uniform(-0.3, 0.3, 1, 1), uniform(0, 1, 2, 1, 1)
    side = SIZE * SUPERSAMPLING
    ticks = (torch.arange(side) + 0.5) / SUPERSAMPLING - SIZE / 2
    y, x = (t - c for t, c in zip(torch.meshgrid(ticks, ticks, indexing="ij"), centre.unbind(1), strict=True))
    u, v = _rotate(x, y, angle)
    u, v = u / (radius * aspect.sqrt()), v / (radius / aspect.sqrt())
    coverage = torch.empty(BLOCK, side, side)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        distance = shape_distance(u[chosen], v[chosen], name) * radius[chosen] * SUPERSAMPLING
        coverage[chosen] = (0.5 - distance).clamp(0, 1)
    along = (axis / wavelength for axis in _rotate(x, y, angle + turn))
    pattern = _patterns(*along, phase, texture, generator)
    dark, light = _colour_pair(uniform)
    paint = dark + (light - dark) * pattern[:, None]
    field = _field(generator)
    ground, strength = uniform(0.2, 0.8, 3, 1, 1), uniform(0.03, 0.08, 1, 1, 1)
    if rendering:
        generator.manual_seed(seed + _RENDERING * rendering)
        field = _field(generator)
    ground = ground + nuisance * strength * field
    covered = avg_pool2d(coverage[:, None], SUPERSAMPLING)
    image = avg_pool2d(paint * coverage[:, None], SUPERSAMPLING) + ground * (1 - covered)
    image = image + nuisance * SENSOR_NOISE * torch.randn(image.shape, generator=generator)
    image = (255 * image).round().clamp(0, 255).to(torch.uint8)
    return {"image": image, "shape": shape, "texture": texture, "mask": covered[:, 0] >= 0.5}


def _field(generator: torch.Generator) -> Tensor:
    """The background's texture, `B 3 32 32`."""
    return pink_noise(3 * BLOCK, SIZE, SIZE, exponent=1.2, generator=generator).view(BLOCK, 3, SIZE, SIZE)


def _patterns(s: Tensor, t: Tensor, phase: Tensor, texture: Tensor, generator: torch.Generator) -> Tensor:
    """Every image's texture at points `B H W` given in wavelengths from the object's centre."""
    # Rings are centred on the object; every other pattern starts anywhere.
    free = (texture != TEXTURES.index("rings")).view(-1, 1, 1)
    s, t = s + free * phase[:, 0], t + free * phase[:, 1]
    pattern = torch.empty_like(s)
    for index, name in enumerate(TEXTURES):
        chosen = texture == index
        if chosen.any():
            pattern[chosen] = texture_field(s[chosen], t[chosen], name, generator)
    return pattern


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle)


def _colour_pair(uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Two colours `B 3 1 1` each, at least 0.45 apart in every image's mean brightness."""
    middle, half = uniform(0.35, 0.65, 1, 1, 1), uniform(0.24, 0.34, 1, 1, 1)
    tint_dark, tint_light = uniform(-0.25, 0.25, 3, 1, 1), uniform(-0.25, 0.25, 3, 1, 1)
    tint_dark, tint_light = (tint - tint.mean(1, keepdim=True) for tint in (tint_dark, tint_light))
    return (middle - half + tint_dark).clamp(0, 1), (middle + half + tint_light).clamp(0, 1)


def shapes(split: str = "test", nuisance: float = 1.0, rendering: int = 0) -> ArraySource:
    """The generated images of a split: "train" (100,000), "val" (5,000) or "test" (10,000).

    Made once (about a minute for "train") and kept in the cache folder. Labels "shape" and "texture" are
    drawn independently; `masks` are the objects. With another `nuisance` than 1 background and noise have
    that many times their amplitude; mean and standard deviation stay, so that the object reads the same.
    Every `rendering` draws background texture and noise anew behind the same objects.

    Raises:
        ValueError: for another split, or a nuisance below 0.
    """
    if split not in SPLITS:
        raise ValueError(f"shapes has no split {split!r}; it has {', '.join(SPLITS)}")
    if not 0 <= nuisance < math.inf:
        wanted = "an amplitude of 0 or more (0: none, 1: the usual one)"
        raise ValueError(f"nuisance must be {wanted}, got {nuisance}")
    make = partial(generate_block, split, nuisance=nuisance, rendering=rendering)
    first = make(0)  # so that a changed generator never reads an older one's images
    content = b"".join(first[name].numpy().tobytes() for name in sorted(first))
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = cache_dir() / "images" / f"shapes-{split}-{fingerprint}.safetensors"
    if not path.exists():
        blocks = tqdm(range(SPLITS[split] // BLOCK), desc=f"shapes/{split}", disable=None)
        made = [make(block) for block in blocks]
        with atomic_path(path) as temporary:
            save_file({name: torch.cat([block[name] for block in made]) for name in first}, temporary)
    data = load_file(path)
    labels = {"shape": data["shape"], "texture": data["texture"]}
    classes = {"shape": SHAPES, "texture": TEXTURES}
    name = f"shapes/{split}" if nuisance == 1 else f"shapes/{split}, nuisance {nuisance:g}"
    name += f", rendering {rendering}" if rendering else ""
    source = ArraySource(name, data["image"], labels, classes, data["mask"], MEAN, STD, "generated")
    source.known_by_labels = True
    return source
