# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Registers and attention sinks
#
# **Claim.** Some encoders keep global information in a few tokens: patch tokens of little content grow large norms
# {cite:p}`darcet2024registers`, and attention flows to them or to the class token whatever the query. Where that
# happens, maps and averages of the other chapters read differently: a hot cell can be a store, not an object.
#
# Two numbers show it. The norm of a patch token, $\lVert z_l \rVert$, set against the median over the tokens of its
# image, and the attention that patch tokens pay to the prefix tokens in the full softmax,
#
# $$
# s = \frac{1}{N} \sum_{q} \sum_{k \in \text{prefix}} A_{qk} ,
# $$
#
# which the other chapters leave out: they look at attention among patch tokens alone. Uniform attention would pay
# one part in $N + 1$ to a single class token.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = (
    None  # a list of encoders by name, for example ["vit_small_patch14_reg4_dinov2"]; None: the study's own
)

# %% [markdown]
# ## Attention to the class token

# %%
from nbhelpers import load, plots
from nbhelpers.results import table

plots.style()
frames = [table(study, "metrics", MODELS) for study in STUDIES]
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    encoder = load(frame["model"].iloc[0])
    plots.by_depth(
        frame, "prefix_attention", ax, heads=True, reference=(encoder.prefix / encoder.tokens, "uniform")
    )
axes[0].legend()
plots.show(axes, "Attention that patch tokens pay to the prefix tokens against depth, a line per model.")

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import late

for study, frame in zip(STUDIES, frames, strict=True):
    for metric in ("prefix_attention", "token_norm_peak", "outlier_tokens"):
        for objective, value in late(frame, metric).items():
            glue(f"{study}-{objective}-{metric}", value, display=False)

# %% [markdown]
# In the last third of the blocks, patch tokens pay {glue:text}`shapes-CL-prefix_attention:.3f` (CL) and
# {glue:text}`shapes-MIM-prefix_attention:.3f` (MIM) of their attention to the class token on `shapes`, and
# {glue:text}`cifar10-CL-prefix_attention:.3f` and {glue:text}`cifar10-MIM-prefix_attention:.3f` on CIFAR-10. A share
# far above the dashed line is a sink: the maps of the other chapters then show how the rest is divided.

# %% [markdown]
# ## Norms of patch tokens
#
# The largest norm among the tokens of an image, relative to their median. Registers would show as a jump of one
# token to several times the others'.

# %%
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    plots.by_depth(frame, "token_norm_peak", ax, reference=(1, "all tokens alike"))
axes[0].legend()
plots.show(
    axes, "Largest norm of an image's patch tokens relative to the median, against depth, a line per model."
)

# %% [markdown]
# In the last third the largest token is {glue:text}`shapes-CL-token_norm_peak:.2f` times the median for CL and
# {glue:text}`shapes-MIM-token_norm_peak:.2f` times for MIM on `shapes`, {glue:text}`cifar10-CL-token_norm_peak:.2f`
# and {glue:text}`cifar10-MIM-token_norm_peak:.2f` times on CIFAR-10. Registers were reported in large encoders after
# long training; encoders as small and as briefly trained as these are not expected to grow them.

# %% [markdown]
# ## What would refute it
#
# The claim is about maps: if removing the tokens of the largest norm left distance and NMI as they are, they would
# not change how a map must be read.
#
# ## Try it yourself
#
# 1. Put a DINOv2 model with and one without registers into `MODELS`, with photographs of your own.
# 2. Draw `"outlier_tokens"`, the share of tokens whose norm stands out, instead of the peak.
# 3. Where in an image are the tokens of the largest norm? `nbhelpers.capture` gives you the stream.
