# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Bring a model
#
# **Claim.** A Vision Transformer whose heads each compute a softmax over one grid of patches can be analysed without
# changing its code, unless the softmax is hidden, as in a compiled model. A model with another kind of attention is
# refused, with the reason.
#
# If timm or a hub knows your model by name, or a file holds its weights, use `load`: a chapter does this for each entry
# of its `MODELS`. If you built the module yourself, `wrap` turns it into an encoder. It reads from the module what it
# can, and you tell it the rest: the number of tokens before the patches (`prefix`), the arrangement of the patches
# (`grid`, `patch_size`), where the blocks are (`blocks`), the first part of a block that sees the tokens after attention
# (`after_attention`), `heads` and `width`, and the `mean` and `std` of your preprocessing. `mean` and `std` cannot be
# checked; for `after_attention`, the only check is that it runs after the attention. In PyTorch's
# `nn.TransformerEncoderLayer` it is `norm2` with `norm_first`, otherwise `norm1`. Blocks must take tokens as `B N D`
# (for PyTorch's layers: `batch_first=True`).
#
# `wrap` takes the module over: it switches it to evaluation mode and turns gradients off. If you want to go on training
# the module, pass a `copy.deepcopy` of it.
#
# This page brings in one model in each of four ways. The models are small and untrained and look at a few images, which
# is enough to see that they can be read. [Your own model](model.py) shows trained ones.

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
# ## Four ways to bring a model
#
# **timm.** A timm ViT carries everything about its tokens, at any image size:

# %%
module = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=3)
brought.append(wrap(module, **pixels, name="timm"))

# %% [markdown]
# **torchvision.** The blocks are at `encoder.layers`, and `ln_2` is the norm before the MLP:

# %%
module = VisionTransformer(
    64, 16, num_layers=3, num_heads=3, hidden_dim=96, mlp_dim=192
)
layout = {"prefix": 1, "grid": (4, 4), "patch_size": 16, "heads": 3, "width": 96}
where = {"blocks": "encoder.layers", "after_attention": "ln_2"}
brought.append(wrap(module, **layout, **where, **pixels, name="torchvision"))

# %% [markdown]
# **Plain PyTorch.** A block may call `nn.MultiheadAttention`, as here, or `F.scaled_dot_product_attention`, or write the
# attention out as product, softmax and product. This model has no class token.


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
# **A file.** `load` builds a timm architecture and fills it with the weights of a `.pth` or `.safetensors` file.
# `replace` gives each encoder its own name, which you need for two checkpoints of one run. Weights do not reveal the
# number of heads, the activation or the epsilon of the norms, so choose an architecture with the same ones as in your
# training. MoCo v3's ViT-S, for example, has 12 heads where timm's has 6:
# `load("mocov3.vit_small_patch16_224", from_file=path)` has the 12. Nor do weights reveal the preprocessing: `load` takes
# mean, standard deviation and crop from the weights that timm has under this name. If your training used others, set
# them: `replace(load(...), mean=..., std=..., crop=1.0)`. A checkpoint of another image size does not fit: build its
# module with `timm.create_model(NAME, img_size=64)`, load the weights with `load_state_dict`, and `wrap` it.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mine.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    brought.append(replace(load("vit_tiny_patch16_224", from_file=path), name="file"))

# %% [markdown]
# ## Check and measure them
#
# The table shows what was read from each model. If a row is not what you expect, do not trust any number below it. Check
# the grid above all, which gives rows before columns: 6 x 4 instead of 4 x 6 has the right number of tokens, so no error
# is raised, but images get the wrong shape, and distances and frequencies are wrong.

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
# One loop measures all four. To use such an encoder in a chapter, make it in a cell above the parameters and list it
# beside the study's own: `STUDIES = ["shapes"]` and `MODELS = [*study("shapes").models, plain]`. Name a single study,
# because a list of models replaces the models of every study, and encoders trained on generated images would then look
# at photographs, a kind of image they have never seen.

# %% mystnb={"image": {"alt": "NMI against depth for four untrained models, from timm, torchvision, plain PyTorch and a file; all four lines lie close to zero."}, "figure": {"caption": "NMI against depth for four models with random weights, brought in four ways; note the scale."}}
own = pd.concat([analyse(encoder, few, ["nmi"]) for encoder in brought])
(ax,) = plots.panels([""])
plots.by_depth(own, "nmi", ax)
ax.set_ylim(0, 1.2 * ax.dataLim.ymax)
legend = plots.legend_below([ax])

# %% [markdown]
# With random weights, attention is nearly uniform and NMI nearly 0: this is how an untrained model looks in every figure
# of NMI. If a trained model looks like this, check its attention entropy. Near 1, its weights were perhaps not loaded;
# clearly below 1, its maps have collapsed.
#
# ## HuggingFace
#
# The book does not install `transformers`, so the code below is not run here. It was tried with version 5; in version 4
# the blocks are at `encoder.layer`.
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
# If the attention of a model cannot be observed (because it uses `bmm`, say, or was compiled), you get an error that
# shows which line to change, and how.
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
# ## Which timm families can be read
#
# One small model of every family of timm's ViTs was run with random weights (`python tests/test_coverage.py`). The
# following can be analysed, and so should their other sizes:

# %%
families = pd.read_csv(DATA / "coverage.csv").convert_dtypes()
families = families.set_index("family")
analysed = families[families["outcome"] == "analysed"]
analysed.drop(columns=["outcome", "reason", "heads"]).rename_axis(None)

# %% [markdown]
# The following are refused, for the reason given:

# %% tags=["hide-output"]
refused = families[families["outcome"] == "refused"]
reasons = refused["reason"].str.partition("cannot be read: ")[2]
Markdown("\n".join(f"- `{family}`: {reason}." for family, reason in reasons.items()))

# %% [markdown]
# ## Try it yourself
#
# 1. Wrap a module of your own, and compare `encoder.forward(images)` with your module's output for the same images.
# 2. Pass a wrong `grid`, or leave out `prefix`: what does the error say?
# 3. Put the encoder into the `MODELS` of a chapter, such as [Attention distance](../attention/distance.py).
