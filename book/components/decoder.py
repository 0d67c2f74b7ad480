# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The decoder
#
# **Claim.** With a transformer decoder behind it, a masked encoder no longer lowers high frequencies in its late blocks,
# except in the last one, and it is in the decoder that query and key tell most about each other {cite:p}`park2023what`.
#
# A masked model must turn its representation back into pixels somewhere. SimMIM has only a linear layer for that, so its
# last blocks may have to do the work. {term}`MAE` {cite:p}`he2022mae` has a decoder: its encoder $f$ sees only the
# visible patches $V$, a quarter of all; the decoder $g$ gets their tokens and a {term}`mask token` $m$ at every hidden
# position $i \in H$, and predicts the pixels there, normalised within each patch:
#
# $$
# \begin{gathered}
# L = \frac{1}{|H|} \sum_{i \in H} \frac{1}{D} \bigl\lVert g\bigl(f(x_V), m\bigr)_i - \tilde x_i \bigr\rVert^2, \\[0.6em]
# \tilde x_i = \frac{x_i - \bar x_i}{s_i} .
# \end{gathered}
# $$
#
# Predicting only each patch's mean costs about 1; a lower loss means that the decoder predicts more than that.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: MIM and MAE
N_IMAGES = 2000
SEED = 0
MASK_RATIO = 0.75

# %% tags=["hide-input"]

import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.intervals import difference
from nbhelpers.results import by_label, published, rows_of, table
from nbhelpers.scorecard.evidence import at, taken_by_late
from nbhelpers.studies import IMAGES, VARIED, nearness

plots.style()
METRICS = ["nmi", "delta_log_amplitude"]

# %% tags=["hide-input"]
draw = {"n_images": None if N_IMAGES == IMAGES else N_IMAGES, "seed": SEED}
frames, missing = {}, {}
for name in STUDIES:
    wanted = MODELS or study(name).trained("mim", "mae") or None
    try:  # of all tables, "profile" alone looks at decoders too
        frames[name] = table(name, "profile", wanted, metrics=METRICS, **draw)
    except MissingDataError as reason:
        missing[name] = str(reason)


# %% tags=["hide-input"]
def with_pair(name, frame):
    """The frame, and MIMs and MAEs of equal width and length; 13a takes the widest."""
    found = [study(name).trained(kind, vary=VARIED) for kind in ("mim", "mae")]
    sizes = set.intersection(*({*map(nearness, names)} for names in found))
    alike = {each for names in found for each in names if nearness(each) in sizes}
    more = sorted(alike - {*frame["model"]})
    if not more or MODELS is not None:
        return frame
    more = table(name, "profile", more, metrics=METRICS, **draw)
    more = more[~more["model"].str.endswith(":decoder")]
    return pd.concat([frame, more], ignore_index=True)


# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["13a", "13b"], STUDIES, MODELS)

# %% [markdown]
# Row 13a compares encoders of equal width that saw equally many images. On generated images this is the wide pair, in
# which MAE took more steps with smaller batches. On photographs, where the wide MAE saw fewer images than the wide MIM,
# it is set beside wide MIMs of several seeds that saw as many as it did. Row 13b compares the decoder of the wide MAE
# with its own encoder.
#
# MIM and MAE differ in more than the decoder: MAE hides more, crops more, its loss is a squared error of standardised
# patches, and no mask token passes through its encoder. So a difference in row 13a would not be due to the decoder alone.
# The paper also finds that the NMI of MAE's encoder, averaged over its blocks, is below that of SimMIM. Among encoders of
# equal size this holds here for all on photographs and for the wide pair on generated images, where the seeds of the
# narrow ones overlap. It also finds the NMI of MAE's decoder above that of SimMIM. This holds here for the wide pair on
# generated images and the narrow ones on photographs, but neither for the wide ones on photographs nor for the narrow ones
# on generated images.
#
# ## The quantity
#
# Eight images with a quarter of their patches visible. Only the decoder's predictions at hidden positions count.

# %%
from nbhelpers.models import MaskedAutoencoder
from nbhelpers.pretrain.mae import hidden_mse, kept_patches, reconstruct
from nbhelpers.pretrain.mae import normalised_patches as normalised

source = study("shapes").images("test")
some = study("shapes").encoders([*(MODELS or []), *study("shapes").trained("mae")])
encoder = next(each for each in some if isinstance(each.module, MaskedAutoencoder))
mae, images = encoder.module, encoder.batch(source, torch.arange(8))
pixels = encoder.preprocess(images)  # B C H W
x = mae.patchify(pixels)  # B N D
V = kept_patches(*x.shape[:2], MASK_RATIO, torch.Generator().manual_seed(SEED))  # B K

# %%
with torch.no_grad():
    g = mae(pixels, keep=V)  # B N D: the encoder sees V alone
x_tilde = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
error = (g - x_tilde).square().mean(-1)  # B N
H = torch.ones_like(error, dtype=torch.bool).scatter(1, V, False)
L = error[H].mean()

assert_close(L, hidden_mse(g, normalised(x), V), atol=1e-4, rtol=1e-4)
means = {"hidden patches (L)": L.item(), "visible patches": error[~H].mean().item()}
pd.DataFrame(means, index=["mean squared error"]).map("{:.2f}".format)

# %% [markdown]
# The second number is not a mistake: the loss leaves out the visible patches, so the decoder does not learn to reproduce
# them.
#
# ## Reconstructing an image from a quarter of it

# %% mystnb={"image": {"classes": "pictures", "alt": "Three rows of eight images: a quarter of the patches on grey; the same patches amid blurred predictions of the others; the original images."}, "figure": {"caption": "Eight images and the MAE trained on generated images. Top: what the encoder sees. Middle: the same patches, and the decoder's prediction of the others; the mean and standard deviation of each hidden patch are taken from the image, since they are not predicted. Bottom: the image."}}
shown, filled = reconstruct(encoder, images, MASK_RATIO, SEED)
(ax,) = plots.panels([""], height=3)
pictures = torch.cat([shown, filled, images.cpu()])
ax = plots.gallery(pictures, len(images), ax)

# %% [markdown]
# Where a visible patch tells what lies beside it, the prediction continues it; elsewhere it is a smooth guess. Under a
# squared error, the best answer in doubt is the mean of what could be there, and a mean is blurred.
#
# ## Where do query and key tell most about each other?
#
# From here on nothing is hidden, as in the paper: encoder and decoder see every patch. [NMI](../attention/collapse.py) is
# 0 where all queries share one attention map, and grows as their maps come to differ.

# %% mystnb={"image": {"alt": "NMI of query and key against depth for SimMIM, the encoder of MAE and, dotted after it, the decoder of MAE; one panel per study and one for the published curves, in which the decoder lies highest."}, "figure": {"caption": "NMI by depth. The count of depth continues from the encoder into its decoder (dotted). Bands: 95 % interval over images. Uniform attention has an NMI of 0. Last panel: published curves (ViT-B/16 on ImageNet), read off the paper."}}
titles = [*map(plots.title, frames.values()), *missing, "published"]
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(plots.behind_encoder(frame), "nmi", ax)
curves = {"models": ["SimMIM", "MAE"], "decoder": True}
plots.published_by_depth(published(), "nmi", axes[-1], **curves)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(frames.values(), "decoder")

# %% [markdown]
# A decoder has to fill each hidden position from its own surroundings, so one expects maps that differ from query to
# query. Single decoder blocks may still have a low NMI. Averaged over all blocks:

# %% tags=["hide-input"]
rows = {}
for name, frame in frames.items():
    whole = frame[(frame["metric"] == "nmi") & (frame["head"] < 0)]
    rows[study(name).title] = by_label(whole)
rows = pd.DataFrame(rows).rename_axis(columns="mean NMI")
rows.map("{:.3f}".format, na_action="ignore").fillna("")


# %% tags=["hide-input"]
def ahead(frame):
    """The mean NMI of each MAE's decoder less that of its encoder."""
    rows = frame[(frame["metric"] == "nmi") & (frame["head"] < 0)]
    means = rows.groupby("model")["value"].mean()
    decoders = means[means.index.str.endswith(":decoder")]
    decoders.index = decoders.index.str.removesuffix(":decoder")
    return (decoders - means).dropna()  # encoders without a decoder drop out


# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    every = study(name).trained("mae", vary=VARIED)  # narrower ones, and their seeds
    gaps = ahead(frame if MODELS else rows_of(name, "profile", every))
    if len(gaps):
        said.append(f"in {(gaps > 0).sum()} of {len(gaps)} on {study(name).title}")
which = "the MAEs drawn" if MODELS else "all MAEs, including seeds of narrower ones"
text = f"Among {which}, the decoder has the higher mean NMI {'; '.join(said)}."
Markdown(text) if said else None

# %% [markdown]
# ## Does the encoder keep its high frequencies?
#
# The [Δ log amplitude](../representations/frequency.py) is 0 where a high frequency is as strong as the constant part. A
# curve that bends down at its end means that the last blocks lower high frequencies.

# %% mystnb={"image": {"alt": "Δ log amplitude near Nyquist against depth for SimMIM, the encoder of MAE and, dotted after it, the decoder of MAE; one panel per study and one for the published curves, in which SimMIM falls at its end."}, "figure": {"caption": "Δ log amplitude at the last frequency below Nyquist on the diagonal, by depth, including pairs of one width that saw equally many images. Lines, bands and last panel as above. The decoder's first dot is its input, projected to the decoder's width."}}
compared = {name: with_pair(name, frame) for name, frame in frames.items()}
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, compared.values(), strict=False):
    plots.by_depth(plots.behind_encoder(frame), "delta_log_amplitude", ax)
plots.published_by_depth(published(), "delta_log_amplitude", axes[-1], **curves)
legend = plots.legend_below(axes)


# %% tags=["hide-input"]
def by_encoder(frame, read):
    """A value read off the curve of each encoder, over seeds, by label."""
    rows = frame[frame["metric"] == "delta_log_amplitude"]
    rows = rows[~rows["model"].str.endswith(":decoder")]
    return scorecard.read_labels(rows, read)


def last_block(curve):
    """The value after the last block but one less that after the last."""
    end = curve["depth"].max()
    return difference(at(end - 1)(curve), at(end)(curve), same_encoder=True)


# %% tags=["hide-input"]
paper = published().query("part == 'encoder' and model in @curves['models']")
paper = paper.dropna(subset="depth")
lost = {}
for name, frame in (compared | {"published": paper}).items():
    lost[name, "last third"] = by_encoder(frame, taken_by_late)
    lost[name, "last block"] = by_encoder(frame, last_block)
values = {
    (study(name).title if name in frames else name, part): {
        who: effect.value for who, effect in each.items()
    }
    for (name, part), each in lost.items()
}
rows = pd.DataFrame(values).rename_axis(columns=("Δ log amplitude", "lost in the"))
rows = rows.round(2) + 0.0  # no -0.00
rows.map("{:.2f}".format, na_action="ignore").fillna("")

# %% [markdown]
# *Lost in the last third*, which row 13a compares between encoders of one size, is the value that enters the last third
# of the blocks less the mean over that third. Above 0, these blocks lower high frequencies. The paper expects this of
# SimMIM, and about 0 for MAE, except in its last block, where its published curve falls.

# %% tags=["hide-input"]
said = []
for name in frames:
    taken = lost[name, "last third"]
    low = [who.split(", ", 1) for who in taken if taken[who].low > 0]
    lower = " and ".join(" (".join(who) + ")" * (len(who) > 1) for who in low)
    said.append(f"- On {study(name).title}, late blocks lower high frequencies in")
    said.append(f"{lower or 'none of these encoders'}.")
    mim = taken.get("MIM")
    if mim and mim.low <= 0:
        said.append("The wide MIM's last blocks do not decode in this sense, so there")
        said.append("is nothing for a decoder to take over.")
Markdown("\n".join(said))

# %% [markdown]
# ## What would refute it
#
# An MAE whose encoder lowers high frequencies in its late blocks more than MIM's does (13a), or whose decoder has a lower
# NMI than its encoder (13b), either by more than the interval.

# %% tags=["hide-input"]
scorecard.rows("components/decoder", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - What shows: the wide MAE's decoder has a higher mean NMI than its encoder. On photographs every narrow MAE repeats
#   this, on generated images not every one does.
# - What remains open: whether a decoder relieves the encoder. On generated images the wide MIM lowers high frequencies
#   late and the wide MAE, which saw as many images, does not; but the narrower pairs do not repeat this, and on
#   photographs it is undecided.
# - MAE's loss counts hidden patches alone; what its decoder predicts for the visible ones was never trained.
# - "The last blocks act as a decoder" is testable: they should lower high frequencies, and a real decoder should relieve
#   them of this.
#
# ## Exercises
#
# 1. **Another model.** An untrained ViT has no decoder. Does it smooth its tokens in its last blocks? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or in the hidden cell below, on a few images.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
untrained = ["random:vit_tiny_patch16_224"]
tiny = table("shapes", "profile", untrained, metrics=METRICS, n_images=16)
ends = tiny[tiny["metric"] == "delta_log_amplitude"].set_index("depth")["value"]
ends.iloc[[0, len(ends) // 2, -1]].round(2)  # before, halfway through and after

# %% [markdown]
# 2. **Hide more.** At which mask ratio does $L$ come close to 1?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# At none of these: even a few visible patches tell what colours to expect.
losses = {}
for ratio in (0.25, 0.5, 0.75, 0.9, 0.95):
    keep = kept_patches(*x.shape[:2], ratio, torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        losses[ratio] = float(hidden_mse(mae(pixels, keep), normalised(x), keep))
pd.Series(losses, name="L").rename_axis("mask ratio").round(2)

# %% [markdown]
# 3. **The lazy decoder.** What exactly does it cost to predict 0 for every normalised pixel of a patch that is not flat?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The variance is the unbiased one: the mean square of D normalised pixels is 1 - 1/D.
D = x.shape[-1]
noise = normalised(torch.randn(1, 64, D))
float(hidden_mse(torch.zeros_like(noise), noise, torch.tensor([[0]]))), 1 - 1 / D
