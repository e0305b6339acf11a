"""Create the package of a new plugin."""

from adaptkit.scaffold.package import Written, write_package

__all__ = ["Written", "write_package"]
