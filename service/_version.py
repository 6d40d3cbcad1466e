"""The version of the installed distribution, in a module that any layer may import."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "vouch-service"
try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"
