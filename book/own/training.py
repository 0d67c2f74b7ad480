# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Train your own
#
# **Claim.** A short run on your own machine lowers the loss on images that it never saw.
#
# The trainer on this page made the encoders of this book; most of those of width 128 were made by a prototype of it. Here
# it runs on your machine for a minute. From random weights, a minute is enough to see a loss fall, but on one core it is
# too short for attention to take shape. So this run continues from the book's masked encoder, adds the contrastive loss,
# and shows how its attention changes.
#
# A hybrid minimises $L = (1 - \lambda) L_{\mathrm{MIM}} + \lambda L_{\mathrm{CL}}$, as in
# [its chapter](../hybrid/hybrid.py). The learning rate follows half a cosine down to zero, so a run has to know its
# length before it begins. This page takes a few trial steps, measures how long a step takes here, and plans a run that
# fits the time.

# %% tags=["parameters"]
STUDY = "shapes"  # or "cifar10", or "folder:/path/to/photographs"
OBJECTIVE = "hybrid-0.2"  # of any lambda, or "mim", "cl", "mae", "dino", "supervised"
START = "mim"  # the book's encoder to go on from, "mim" or "cl"; None: random weights
SECONDS = 60  # how long to train
BATCH_SIZE = 64
N_IMAGES = 500  # test images that attention is measured on
SEED = 0
MODELS = None  # encoders to draw beside yours; None: the book's own of this objective
FOLDER = None  # where your encoder goes; None: the folder `own` in the cache folder

# %% [markdown]
# ## Images and recipe
#
# The recipe is the book's recipe for this objective, but with smaller batches, which give more steps in the same time. A
# folder of your own photographs uses the recipe for CIFAR-10.

# %%
from dataclasses import replace
from pathlib import Path

from nbhelpers import images, load, plots, study
from nbhelpers.files import cache_dir
from nbhelpers.pretrain import Trainer, recipe

plots.style()

# %%
name, _, folder = STUDY.partition(":")
if folder:
    name = "cifar10"
    whole = images.folder(folder, size=32)
    train, val, test = (whole.select(range(start, len(whole), 3)) for start in range(3))
else:
    train, val, test = (study(name).images(split) for split in ("train", "val", "test"))
chosen = replace(recipe(name, OBJECTIVE), batch_size=BATCH_SIZE, seed=SEED)
place = Path(FOLDER or cache_dir() / "own")

# %%
import time

start = START and load(f"{name}.{START}", device="cpu")
trial = Trainer(chosen, train, val, place, start=start)
list(trial.steps(until=1))  # the first step is slower than those that follow
begun = time.monotonic()
list(trial.steps(until=4))
cost = (time.monotonic() - begun) / 3
chosen = replace(chosen, images=max(2, round(SECONDS / cost)) * BATCH_SIZE)

# %% tags=["hide-input"]
from IPython.display import Markdown

from nbhelpers.models import manifest

seen = "".join(
    f" The book's encoder {each} saw {manifest()[each]['images_seen']:,}."
    for each in study(name).trained(OBJECTIVE)[:1]
)
book = recipe(name, OBJECTIVE).images
Markdown(
    f"A step of {BATCH_SIZE} images takes {cost:.2f} s here. In {SECONDS} s that makes "
    f"**{chosen.steps} steps**, or {chosen.images:,} images. The book's recipe uses "
    f"{book:,}.{seen}"
)

# %% [markdown]
# ## The training loop
#
# Each training step draws views, computes the loss and its gradient, and updates the weights. The loop below works on a
# copy, so that the run after it starts from unchanged weights. It uses AdamW for brevity; `Trainer` takes Muon
# {cite:p}`liu2025muon` for weight matrices and AdamW for all else, and adds a learning-rate schedule and checkpoints. Four
# steps are too few to see the loss fall.

# %%
import copy

import torch

objective = copy.deepcopy(trial.objective)
optimizer = torch.optim.AdamW(
    [p for p in objective.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05
)
noise = torch.Generator(trial.device).manual_seed(SEED)
torch.manual_seed(SEED)
label = objective.label  # None, unless the objective is supervised

# %%
first_losses = []
for step in range(4):
    rows = torch.randperm(len(train))[:BATCH_SIZE]
    views = objective.views(train.batch(rows).to(trial.device), noise)
    known = [] if label is None else [train.labels[label][rows].to(trial.device)]
    loss = objective.loss(*views, *known)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), chosen.clip)
    optimizer.step()
    objective.after_step(torch.tensor((step + 1) / 4))  # a momentum encoder follows
    first_losses.append(round(loss.item(), 3))
first_losses

# %% [markdown]
# ## The run
#
# `Trainer.steps` takes one step after another and yields the loss of each. In a notebook, the figure grows while the
# encoder trains. The loss is noisy because every batch has different images, views and masks; the line is a mean over
# ten steps.

# %%
from nbhelpers.models import save_encoder
from nbhelpers.pretrain import description

trainer = Trainer(chosen, train, val, place, start=start)
about = description(trainer, name)
before = load(save_encoder(trainer.objective.saved, "before", about, place))
loss_before = trainer.validation_loss()

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display


def curve(losses):
    """Draw the loss against the step, and its mean over ten steps."""
    (ax,) = plots.panels([f"{OBJECTIVE} on {train.name}"])
    series = pd.Series(losses, index=range(1, len(losses) + 1))
    ax.plot(series, color="#999999", lw=0.6)
    ax.plot(
        series.rolling(10, min_periods=1, center=True).mean(), color="#222222", lw=1.6
    )
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, chosen.steps))
    return ax.figure


# %% mystnb={"image": {"alt": "Training loss against step: single steps in grey, the mean over ten steps in black."}, "figure": {"caption": "Training loss of each step (grey), and its mean over the ten steps around it (black)."}}
losses, picture, drawn = [], None, 0.0
for loss in trainer.steps():
    losses.append(float(loss))
    if time.monotonic() - drawn > 2 or trainer.done:
        figure = curve(losses)
        if picture is None:
            picture = display(figure, display_id=True)
        else:
            picture.update(figure)
        plt.close(figure)
        drawn = time.monotonic()

# %% tags=["remove-input"]
numbers = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
plots.download(numbers, "loss")

# %% [markdown]
# ## How attention changed
#
# {term}`NMI` of query and key says how much a token's attention map depends on where the token is; it is 0 if all maps are
# alike. The paper finds it [high in a masked encoder and low in a contrastive one](../attention/collapse.py), and in a
# hybrid high in the middle blocks and low in the last. In the book's small hybrid it is low in the middle, too. In the
# figure, "before" is where this run began.

# %% mystnb={"image": {"alt": "NMI of query and key against depth for three encoders: before this run, after it, and a finished one of the book."}, "figure": {"caption": "NMI of query and key against depth: at the start of this run (before), at its end (yours), and in a finished encoder of the book. The finished encoder can have another width and started from random weights: it shows a direction, not a target. Lines: mean over heads, with the 95 % interval over images; dots: single heads."}}
from nbhelpers import analyse

after = load(save_encoder(trainer.objective.saved, "yours", about, place))
finished = MODELS or study(name).trained(OBJECTIVE)[:1]
before = replace(before, objective=start.objective if start else "random")
encoders = [before, replace(after, objective="unknown"), *map(load, finished)]
sample = test.subset(min(N_IMAGES, len(test)), SEED)
each = [analyse(encoder, sample, ["nmi"], cache=False) for encoder in encoders]
frame = pd.concat(each)
(ax,) = plots.panels([f"{sample.name}, {len(sample)} images"])
plots.by_depth(frame, "nmi", ax, heads=True)
legend = ax.figure.legend(loc="outside lower left", ncols=2)  # settings in full

# %% tags=["remove-input"]
plots.download(frame, "nmi")

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
from nbhelpers.results import early, late

first, last = early(frame, "nmi"), late(frame, "nmi")
loss_after, held_out = trainer.validation_loss(), sum(len(b[0]) for b in trainer.val)
verdict = "fell" if loss_after < loss_before else "did not fall"
Markdown(
    f"In this run of {chosen.steps} steps, the loss on held-out images **{verdict}**, "
    f"from {loss_before:.3f} to {loss_after:.3f}. Both values are means over the same "
    f"{held_out:,} images with the same views. This is a single run, so there is no "
    "interval over seeds. The table gives NMI of query and key:"
)

# %% tags=["hide-input"]
thirds = {"first third of the blocks": first, "last third": last}
pd.DataFrame(thirds).map("{:.3f}".format)

# %% [markdown]
# On a faster machine, your encoder sees more images in the same time and may change more.
#
# ## Keep your encoder and train longer
#
# Until this page runs again, the encoder is the file `yours.safetensors` in `FOLDER`, by default `.cache/own` in the clone
# (`print(place)` says where). Put its path into `MODELS` of a chapter on attention or representations, or of
# [Layers](../components/layers.py), and the figures are drawn for your encoder too. For a longer run from the same start,
# raise `SECONDS`. A longer run from random weights that can be interrupted and resumed is one shell command:
#
# ```bash
# python -m nbhelpers.pretrain --study shapes --objective hybrid-0.2 \
#     --seed 7 --images 100000
# ```
#
# Give the same command again to resume where it stopped. The result is stored in `data/encoders` under a name that you can
# use in `MODELS`, `shapes.hybrid-0.2.n100000.s7`. On several GPUs: `torchrun --nproc-per-node 4 -m nbhelpers.pretrain ...`.
#
# The command trains only on the images of the book. For a long run on your own photographs, use a `Trainer` in a script:
#
# ```python
# from dataclasses import replace
# from pathlib import Path
#
# from nbhelpers import images
# from nbhelpers.models import save_encoder
# from nbhelpers.pretrain import Trainer, description, recipe
#
# mine = images.folder("/path/to/photographs", size=32)
# val = mine.select(range(0, len(mine), 10))
# train = mine.select([i for i in range(len(mine)) if i % 10])
# longer = replace(recipe("cifar10", "mim"), images=1_000_000, batch_size=256)
# trainer = Trainer(longer, train, val, Path("runs/mine"))
# if trainer.run():  # false when stopped; run(until=5_000) looks at an intermediate state
#     about = description(trainer, "cifar10")
#     save_encoder(trainer.objective.saved, "mine", about, Path("runs"))
# ```
#
# `run` writes `checkpoint.pt` into its folder every three minutes, and when it is stopped by Ctrl-C or SIGTERM. Run the
# same script again, even after it was killed, and it resumes from the last checkpoint. The finished encoder is
# `runs/mine.safetensors`.

# %% [markdown]
# ## What would refute it
#
# A loss on held-out images that does not fall over a run of some hundred steps. In a shorter run the fall may not show
# yet: adding the contrastive loss changes the sum at once, and its momentum encoder follows slowly.
#
# ## Takeaways
#
# - Training is four lines: views, loss, gradient, step. Everything else is bookkeeping, which lets a run end when it should
#   and resume where it stopped.
# - The learning-rate schedule depends on the length of the run, so a run that is cut short differs from one that was
#   planned to be short.
# - A falling loss shows that something is learnt, not what. To see what, look at attention or train a probe.
#
# ## Exercises
#
# 1. **Other models.** Draw other encoders beside yours with `MODELS`, such as `["shapes.cl", "shapes.mim"]`. To which of
#    the two is yours closer after one minute, and after ten?
# 2. **Another objective.** Set `OBJECTIVE` to another lambda, or `STUDY` to a folder of your own photographs, laid out as
#    `CLASS/FILE`.
# 3. **An objective of your own.** Write a class like those in `nbhelpers/pretrain/simmim.py`, register it as below, and set
#    `OBJECTIVE = "mine"`; you can use `trainer.encoder()` in the `MODELS` of a chapter.
#
#    ```python
#    from nbhelpers.pretrain import recipes
#
#    mine = replace(recipe("shapes", "mim"), objective="mine", options={})
#    recipes.CLASSES["mine"], recipes.STUDIES["shapes"]["mine"] = Mine, mine
#    ```
# 4. **From random weights.** Set `START = None` and train for an hour. Does the order in which the losses begin to fall
#    agree with [which loss pulls harder](../hybrid/agreement.py)? For another architecture, use
#    `replace(recipe(name, OBJECTIVE), width=96, heads=6, depth=6)`.
