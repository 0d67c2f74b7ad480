"""Whether two networks give equal features: a hash of weights, settings and code, and what it cannot see."""

import functools
import hashlib
import inspect
import pickle
import pickletools
import sys
import uuid
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn

# Attributes that are no settings: where weights came from, and what torch keeps in every module.
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
        code = [code_of(kind) for kind in type(part).__mro__]
        try:
            settings = joblib.hash(_settings(part))
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

    That is on hooks, on replaced methods, be it of a part or of its class, or on code that is not installed,
    as of a notebook, be it a part's or that of a setting: it may call other such code or read globals that
    change. So may a setting that cannot be pickled.
    """
    everywhere = vars(torch.nn.modules.module)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return any(everywhere[f"_global{each}"] for each in hooks) or any(
        any(getattr(part, each) for each in hooks)
        or not all(map(_installed, _modules(type(part)) | _mentioned(part)))
        or any(callable(getattr(type(part), key, None)) for key in vars(part))
        for part in module.modules()
    )


def _settings(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither weights nor what torch keeps in every module."""
    return {key: value for key, value in vars(part).items() if key not in _NO_SETTINGS}


def _modules(kind: type) -> set[str]:
    """Python modules that a class, its bases and their methods, as they are now, were defined in."""
    bases = kind.__mro__
    methods = [each for base in bases for each in vars(base).values() if inspect.isfunction(each)]
    return {each.__module__ for each in (*bases, *methods)}


def _mentioned(part: nn.Module) -> set[str]:
    """Python modules that a part's settings refer to, by name; "" for settings that cannot be pickled."""
    try:
        content = pickle.dumps(_settings(part), protocol=2, fix_imports=False)  # with whole names of globals
    except Exception:  # objects raise almost any type where they cannot be pickled
        return {""}
    return {name.split()[0] for code, name, _ in pickletools.genops(content) if code.name == "GLOBAL"}


def _installed(name: str) -> bool:
    """Whether a Python module is of the standard library, an installed package or this one."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] in {*sys.stdlib_module_names, "torch", "nbhelpers"} or "-packages" in file


@functools.cache
def code_of(kind: type) -> str:
    """Name of a class, and a hash of the code that defines it.

    That is its file's, or of a cell its own; of a package other than torch, timm and this one, which is not
    known by its version, that of all its files.
    """
    try:
        file = Path(inspect.getsourcefile(kind))
        source = file.read_text(encoding="utf-8") if file.exists() else inspect.getsource(kind)  # of a cell
    except (OSError, TypeError):
        source = ""  # built in
    package = kind.__module__.partition(".")[0]
    if source and package not in {*sys.stdlib_module_names, "torch", "timm", "nbhelpers"}:
        source += _code_of_package(package)
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(source.encode()).hexdigest()}"


@functools.cache
def _code_of_package(name: str) -> str:
    """A hash of all Python files of a package, empty for a module that is none."""
    folders = getattr(sys.modules.get(name), "__path__", ())
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    return joblib.hash([file.read_bytes() for file in files]) if files else ""
