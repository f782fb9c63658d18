"""xlm: language models that need not generate left to right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlm.commands.loading import load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``xlm.load`` and ``xlm.__version__`` cost nothing until they are used."""
    if name == "load":
        from xlm.commands.loading import load

        return load
    if name == "__version__":
        from importlib.metadata import version

        return version("xlm-core")
    raise AttributeError(f"module 'xlm' has no attribute '{name}'")
