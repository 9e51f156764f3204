"""Configs that are installed, one for each dataset; each overrides defaults of `mlc_jax.config`."""

import importlib
import pathlib
import pkgutil


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def path(name: str) -> pathlib.Path:
    """The file of a preset."""
    return pathlib.Path(__file__).with_name(f"{name}.py")


def page(name: str) -> str:
    """The docstring of a preset, which `mlc-jax settings NAME` prints."""
    return (importlib.import_module(f"{__name__}.{name}").__doc__ or "").strip()
