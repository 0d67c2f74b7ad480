"""What do self-supervised Vision Transformers learn? The verbs: load, study, analyse, plots, pretrain."""

from nbhelpers import plots
from nbhelpers.models import load
from nbhelpers.pretrain import pretrain
from nbhelpers.study import analyse, study

__all__ = ["analyse", "load", "plots", "pretrain", "study"]
