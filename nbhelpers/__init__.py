"""What do self-supervised Vision Transformers learn? The verbs: load, study, analyse, plots, pretrain."""

from nbhelpers import plots
from nbhelpers.measure import analyse
from nbhelpers.models import load
from nbhelpers.pretrain import pretrain
from nbhelpers.studies import study

__all__ = ["analyse", "load", "plots", "pretrain", "study"]
