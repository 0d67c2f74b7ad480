"""What do self-supervised Vision Transformers learn? The verbs: load, study, analyse, plots, pretrain."""

from nbhelpers import plots
from nbhelpers.analyse import analyse
from nbhelpers.models import load
from nbhelpers.pretrain import pretrain
from nbhelpers.study import study

__all__ = ["analyse", "load", "plots", "pretrain", "study"]
