"""Unknown names are answered with the nearest known ones."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after "there is no NAME; ": the known names next to it, or all if they are few.

    >>> nearest("entorpy", ["distance", "entropy"])
    'nearest: entropy'
    >>> nearest("shapes", ["shapes.mim", "cifar10.cl", "shapes.cl"])
    'nearest: shapes.cl, shapes.mim'
    >>> nearest("?", ["mim", "cl"])
    'there are cl, mim'
    """
    names = sorted(set(known))
    # A name cut short means those that it is part of.
    near = [each for each in names if name and name in each][:5]
    near = near or difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    more = ", ..." if len(names) > 12 else ""
    return f"there are {', '.join(names[:12])}{more}"
