"""Whether two networks give equal features: a hash of weights, settings and code, and what it cannot see."""

import functools
import hashlib
import inspect
import sys
import sysconfig
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn

# Of a module's attributes: where its weights came from, and what torch keeps in every module.
_NO_SETTINGS = {"pretrained_cfg", "default_cfg", *vars(nn.Module())} - {"training"}


def fingerprint(module: nn.Module, reading: Any) -> str:
    """Hexadecimal hash of a module's weights, buffers, settings and code, and of how it is read.

    Equal for modules that give equal features. A setting that cannot be pickled, such as a lambda,
    equals no other.

    Args:
        module: the network.
        reading: values of plain types that features depend on besides, such as the preprocessing.
    """
    digest = hashlib.sha256(repr(reading).encode())
    for name, part in module.named_modules(remove_duplicate=False):
        code = [_code(kind) for kind in type(part).__mro__]
        settings = {key: value for key, value in vars(part).items() if key not in _NO_SETTINGS}
        try:
            settings = joblib.hash(settings)
        except Exception:  # objects raise almost any type where they cannot be pickled
            settings = uuid.uuid4().hex
        digest.update(repr((name, code, part.extra_repr(), settings)).encode())
        own = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
        for key, value in sorted(own.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hooked(module: nn.Module) -> bool:
    """Whether a module's features may depend on what `fingerprint` cannot see.

    That is on hooks, on replaced methods, or on code that is not installed, as of a notebook, be it a
    part's or that of a setting: it may call other such code or read globals that change.
    """
    everywhere = vars(torch.nn.modules.module)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return any(everywhere[f"_global{each}"] for each in hooks) or any(
        any(getattr(part, each) for each in hooks)
        or not all(map(_installed, [*type(part).__mro__, *_inside(vars(part))]))
        or any(callable(getattr(type(part), key, None)) for key in vars(part))
        for part in module.modules()
    )


def _inside(value: Any, level: int = 0) -> Iterator[Any]:
    """A setting of a module and what it is made of; other modules have their own turn."""
    yield value
    if isinstance(value, Mapping):
        value = list(value.values())
    elif isinstance(value, functools.partial):
        value = [value.func, value.args, value.keywords]
    elif isinstance(value, types.FunctionType):
        value = [cell.cell_contents for cell in value.__closure__ or ()]
    elif not isinstance(value, Sequence | Set | type | nn.Module):
        value = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes) and level < 5:
        for part in value:
            yield from _inside(part, level + 1)


def _installed(thing: Any) -> bool:
    """Whether a class, a function or the class of a value is of Python, an installed package or this one."""
    name = getattr(thing, "__module__", None) or "builtins"
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    own = name.partition(".")[0] in ("builtins", "torch", "nbhelpers")
    return own or "-packages" in file or file.startswith(sysconfig.get_path("stdlib"))


@functools.cache
def _code(kind: type) -> str:
    """Name of a class, and a hash of the file that defines it, or of its source in a notebook."""
    try:
        file = Path(inspect.getsourcefile(kind))
        source = file.read_text(encoding="utf-8") if file.exists() else inspect.getsource(kind)  # of a cell
    except (OSError, TypeError):
        source = ""  # built in
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(source.encode()).hexdigest()}"
