# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Bring a model
#
# **Claim.** A Vision Transformer whose heads each compute a softmax over one grid of patches can be read as it is,
# without a change of its code, unless it hides that softmax, as a compiled one does. One whose attention is of another
# kind is refused, with the reason.
#
# A model that timm or a hub knows by name, or whose weights a file holds, is loaded by `load`, which is what a chapter
# does with each entry of its `MODELS`. Of a module that you built yourself, `wrap` makes an encoder. It reads what the
# module says of itself, and you tell it the rest: how many tokens stand before the patches (`prefix`), how the patches
# are arranged (`grid`, `patch_size`), where the blocks are (`blocks`), which part of a block first sees the tokens after
# attention (`after_attention`), `heads` and `width`, and the `mean` and `std` of your preprocessing. Nothing can check
# these two; of `after_attention` only that it runs after the attention is checked. Of PyTorch's
# `nn.TransformerEncoderLayer` it is `norm2` with `norm_first`, else `norm1`. Blocks take tokens as `B N D` (of PyTorch's
# layers: `batch_first=True`).
#
# `wrap` takes the module over: evaluation mode, and no gradients. Pass a `copy.deepcopy` of one that you go on training.
#
# This page brings one model in each of four ways. They are small and untrained, and look at a few images: enough to see
# that they are read. What trained ones look like is on [Your own model](model.py).

# %% tags=["parameters"]
STUDY = "shapes"
N_IMAGES = 16
SEED = 0

# %% tags=["hide-input"]
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
import timm
import torch
from IPython.display import Markdown
from torch import nn
from torchvision.models import VisionTransformer

from nbhelpers import analyse, load, plots, study
from nbhelpers.files import DATA
from nbhelpers.models import UnsupportedArchitecture, wrap

plots.style()

# %%
torch.manual_seed(SEED)
few = study(STUDY).images("test").at_most(N_IMAGES, seed=SEED)
pixels = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # as in your training
brought = []

# %% [markdown]
# ## Four ways
#
# **timm.** Its ViTs say all about their tokens, at any size of the image:

# %%
module = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=3)
brought.append(wrap(module, **pixels, name="timm"))

# %% [markdown]
# **torchvision.** The blocks are at `encoder.layers`, and `ln_2` is the norm in front of the MLP:

# %%
module = VisionTransformer(
    64, 16, num_layers=3, num_heads=3, hidden_dim=96, mlp_dim=192
)
layout = {"prefix": 1, "grid": (4, 4), "patch_size": 16, "heads": 3, "width": 96}
where = {"blocks": "encoder.layers", "after_attention": "ln_2"}
brought.append(wrap(module, **layout, **where, **pixels, name="torchvision"))

# %% [markdown]
# **Plain PyTorch.** A block may call `nn.MultiheadAttention`, as here, or `F.scaled_dot_product_attention`, or multiply,
# take the softmax and multiply again by hand. This model has no class token.


# %%
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(96, 3, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(96), nn.LayerNorm(96)
        self.mlp = nn.Sequential(nn.Linear(96, 192), nn.GELU(), nn.Linear(192, 96))

    def forward(self, x):  # B N D
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


# %%
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 96, 16, 16)
        self.positions = nn.Parameter(0.02 * torch.randn(16, 96))
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x):  # B C H W -> B N D
        return self.blocks(self.patches(x).flatten(2).mT + self.positions)


# %%
plain = wrap(
    Plain(),
    prefix=0,
    grid=(4, 4),
    patch_size=16,
    heads=3,
    width=96,
    blocks="blocks",
    after_attention="norm2",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    name="PyTorch",
)
brought.append(plain)

# %% [markdown]
# **A file.** `load` builds an architecture of timm's and puts the weights of a `.pth` or `.safetensors` file into it.
# `replace` gives each encoder a name of its own, which two checkpoints of one run need. Weights do not tell the number of
# heads, the activation or the epsilon of the norms: choose the architecture that has those of your training. MoCo v3's
# ViT-S, for example, has 12 heads and timm's 6; `load("mocov3.vit_small_patch16_224", from_file=path)` has the 12. Nor do
# weights tell how images were prepared: mean, deviation and crop are those of the weights that timm has under this name.
# Where your training had others, `replace` sets them: `replace(load(...), mean=..., std=..., crop=1.0)`. A checkpoint of
# another image size does not fit: build its module by `timm.create_model(NAME, img_size=64)`, give it the weights by
# `load_state_dict`, and `wrap` it.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mine.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    brought.append(replace(load("vit_tiny_patch16_224", from_file=path), name="file"))

# %% [markdown]
# ## Read them
#
# What was read off each. If a row is not what you expect of your model, no number that follows can be trusted. Look at the
# grid, rows before columns: 6 x 4 in place of 4 x 6 has the right number of tokens. So nothing complains, but images get
# the wrong shape, and distances and frequencies are wrong:

# %%
rows = {
    e.name: {
        "blocks": e.depth,
        "width": e.width,
        "heads": e.heads,
        "prefix tokens": e.prefix,
        "patch grid": "{} x {}".format(*e.grid),
    }
    for e in brought
}
pd.DataFrame(rows).T

# %% [markdown]
# One loop measures all four. In a chapter, make such an encoder in a cell above the parameters and name it there, beside
# the study's own: `STUDIES = ["shapes"]` and `MODELS = [*study("shapes").models, plain]`. A list of models stands for the
# own ones of every study, so keep to one: encoders of generated images look at photographs as strangers do.

# %% mystnb={"image": {"alt": "NMI against depth of four untrained models, one each of timm, torchvision, plain PyTorch and a file; all lie close to zero."}, "figure": {"caption": "NMI against depth of four models with random weights that were brought in four ways; mind the scale."}}
own = pd.concat([analyse(encoder, few, ["nmi"]) for encoder in brought])
(ax,) = plots.panels([""])
plots.by_depth(own, "nmi", ax)
ax.set_ylim(0, 1.2 * ax.dataLim.ymax)
legend = plots.legend_below([ax])

# %% [markdown]
# Random weights attend nearly uniformly, so NMI is nearly 0: what an untrained model looks like in every figure of NMI.
# If a trained one looks so, look at its entropy: near 1, its weights were perhaps not loaded; clearly below 1, its maps
# have collapsed.
#
# ## HuggingFace
#
# The book does not install `transformers`, so this is not run here. It was tried with version 5; in version 4 the blocks
# are at `encoder.layer`.
#
# ```python
# from transformers import ViTModel
#
# module = ViTModel.from_pretrained("google/vit-base-patch16-224-in21k")
# config = module.config
# encoder = wrap(
#     module,
#     prefix=1,
#     grid=config.image_size // config.patch_size,
#     patch_size=config.patch_size,
#     heads=config.num_attention_heads,
#     width=config.hidden_size,
#     blocks="layers",
#     after_attention="layernorm_after",
#     mean=(0.5, 0.5, 0.5),
#     std=(0.5, 0.5, 0.5),
# )
# ```
#
# ## What cannot be read
#
# A model whose attention cannot be seen (it uses `bmm`, say, or was compiled) ends in an error that shows the two
# lines to change.
#
# Architectures whose attention is confined to windows (Swin), pools its queries or keys (Hiera, MViT), or runs over
# channels (XCiT) have no $N \times N$ map over one grid. They are refused by name, with the reason, rather than
# measured wrongly.

# %%
try:
    wrap(timm.create_model("xcit_nano_12_p16_224"))
except UnsupportedArchitecture as reason:
    print(textwrap.fill(str(reason), 80))

# %% [markdown]
# ## Families of timm
#
# One small model of every family of timm's ViTs was run with random weights (`python tests/test_coverage.py`). These
# can be analysed, and their relatives of other sizes should be:

# %%
families = pd.read_csv(DATA / "coverage.csv").convert_dtypes()
families = families.set_index("family")
analysed = families[families["outcome"] == "analysed"]
analysed.drop(columns=["outcome", "reason", "heads"]).rename_axis(None)

# %% [markdown]
# And these are refused, with the reason:

# %% tags=["hide-output"]
refused = families[families["outcome"] == "refused"]
reasons = refused["reason"].str.partition("cannot be read: ")[2]
Markdown("\n".join(f"- `{family}`: {reason}." for family, reason in reasons.items()))

# %% [markdown]
# ## Try it yourself
#
# 1. Wrap a module of yours, and compare `encoder.forward(images)` with what your module gives for the same images.
# 2. Give it a wrong `grid`, or leave `prefix` away: what does the error say?
# 3. Put the encoder into `MODELS` of a chapter, such as [Attention distance](../attention/distance.py).
