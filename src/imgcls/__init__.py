"""An image-classification research template. `imgcls.api` has the names for Python; they are here, too."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the API, and torch with it, when one of its names is asked for."""
    import importlib

    if name.startswith("_"):
        raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
    api = importlib.import_module("imgcls.api")
    if name not in api.__all__:
        raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
    return getattr(api, name)
