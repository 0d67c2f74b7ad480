"""What do self-supervised Vision Transformers learn? The verbs: load, study, analyse, plots, pretrain."""

import nbhelpers.analyse  # before the function of that name, which a later import would hide
from nbhelpers import plots
from nbhelpers.measure import analyse
from nbhelpers.models import load
from nbhelpers.pretrain import pretrain
from nbhelpers.studies import study

__all__ = ["analyse", "load", "plots", "pretrain", "study"]
