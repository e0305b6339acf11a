"""Write the package of a new plugin from templates."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adaptkit.errors import BadInput
from adaptkit.plugins.loading import load_plugins
from adaptkit.system.files import expanded
from adaptkit.version import __version__

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: kind -> example command that uses the component; a shift needs an amount
EXAMPLES = {
    "strategy": "adaptkit run -s {name}",
    "backbone": "adaptkit run -s head --backbone {name}",
    "dataset": "adaptkit run -s head --dataset {name}",
    "shift": "adaptkit run -s head --shift {name}=0.5",
}


@dataclass(frozen=True)
class Written:
    """A new package: its folder, its module, and a command that uses its component."""

    folder: Path
    module: Path
    example: str


def write_package(name: str, kind: str, parent: Path) -> Written:
    """Write the package `adaptkit-NAME` for a strategy, backbone, dataset or shift of this name to `parent`.

    Raises BadInput and writes nothing if the name is invalid or the folder exists.
    """
    if not NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be the name of a plugin; use lowercase letters and digits, with - between words"
        )
    if name.startswith("adaptkit"):
        raise BadInput(f"{name!r}: omit `adaptkit`; the package will be called adaptkit-NAME")
    component = load_plugins().components[kind].get(name)
    if component is not None:
        raise BadInput(f"{kind} {name!r} is already provided by {component.origin}; choose another name")
    folder = expanded(parent) / f"adaptkit-{name}"
    if folder.exists():
        raise BadInput(f"{folder} already exists; choose another name, or another folder with --output")
    example = EXAMPLES[kind].format(name=name)
    names = {
        "name": name,
        "kind": kind,
        "distribution": f"adaptkit-{name}",
        "module": f"adaptkit_{name.replace('-', '_')}",
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "example": example,
        "version": __version__,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise BadInput(f"cannot write to {folder.parent}: {error.strerror or error}") from None
    try:
        for template, target in (
            (f"{kind}.py.j2", f"{names['module']}.py"),
            ("test.py.j2", f"tests/test_{names['module']}.py"),
            ("setup.cfg.j2", "setup.cfg"),
            ("pyproject.toml.j2", "pyproject.toml"),
            ("README.md.j2", "README.md"),
        ):
            path = unfinished / target
            path.parent.mkdir(exist_ok=True)
            path.write_text(_templates().get_template(template).render(names), encoding="utf-8")
        unfinished.chmod(0o755)
        os.rename(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise BadInput(f"cannot write {folder}: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Written(folder, folder / f"{names['module']}.py", example)


def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
