"""Begin plugins: packages that can be installed, tested and shipped as they are written."""

from adaptkit.scaffold.package import Written, write_package

__all__ = ["Written", "write_package"]
