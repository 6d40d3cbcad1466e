"""The version of the installed distribution; nothing needs to import the package's face for it."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "vouch-service"
try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"
