"""Which optional packages are there, for scripts that import them only then.

Asked without importing the packages.
"""

from importlib.util import find_spec

_OMEGACONF_AVAILABLE = find_spec("omegaconf") is not None
_RICH_AVAILABLE = find_spec("rich") is not None
_TORCHVISION_AVAILABLE = find_spec("torchvision") is not None
