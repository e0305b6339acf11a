"""Describe the machine, the software and the source code of a run, and compare such descriptions."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptkit.names import (
    COMMAND_TAG,
    GIT_BRANCH_TAG,
    GIT_COMMIT_TAG,
    HOST_TAG,
    PID_TAG,
    PROCESS_SEEN_TAG,
    SOURCE_TYPE_TAG,
    USER_TAG,
)
from adaptkit.version import __version__


@dataclass(frozen=True)
class EnvironmentDifference:
    """A difference between the recorded and the current environment that can change results."""

    what: str
    recorded: str
    now: str


#: distributions that compute images, models or metrics
COMPUTING = ("mlxtend", "numpy", "pillow", "scikit-learn", "scipy", "torch", "torchvision")
#: prefixes of libraries that these distributions use: on every device, and only on a GPU
LIBRARIES, GPU_LIBRARIES = ("intel-openmp", "mkl"), ("nvidia-", "rocm")
NOT_RECORDED, ABSENT = "not recorded", "none"
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def environment() -> str:
    """Return the text of `environment.txt`: the versions of adaptkit, Python, the system and all distributions."""
    import torch

    lines = [
        f"adaptkit {__version__}",
        f"python {platform.python_version()}",
        f"platform {platform.platform()}",
        f"processor {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        # The instruction set that torch uses: it decides the order of sums.
        f"cpu {torch.backends.cpu.get_cpu_capability()}, {_processor()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"cuda {torch.version.cuda}, {torch.cuda.get_device_name()}")
    return "\n".join([*lines, "", *(f"{name}=={version}" for name, version in sorted(_distributions().items())), ""])


@dataclass(frozen=True)
class Environment:
    """The content of an `environment.txt`: its first lines by their first word, and versions by distribution."""

    head: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Environment:
        """Parse the text of an `environment.txt`."""
        head: dict[str, str] = {}
        versions: dict[str, str] = {}
        for line in text.splitlines():
            name, equals, version = line.partition("==")
            if equals and " " not in name:
                versions[normalised(name)] = version.strip()
            elif line.strip():
                word, _, rest = line.partition(" ")
                head[word] = rest.strip()
        return cls(head, versions)

    def deciding(self, device: str, threads: str | None, plugins: Iterable[str] = ()) -> dict[str, str]:
        """Return the properties that can change the results of a run, by name.

        `threads` is the number of threads that the run has recorded. `plugins` are the distributions of the plugins
        that it needs. The version of the kernel and all other distributions are left out.
        """
        machine = [part.strip() for part in self.head.get("processor", "").split(",")]
        counts = {part.partition(" ")[2]: part.split()[0] for part in machine if " " in part}
        properties = {
            "adaptkit": self.head.get("adaptkit", ""),
            "Python": ".".join(self.head.get("python", "").split(".")[:2]),
            "system": re.sub(r"^Linux-.*-with-", "Linux, ", self.head.get("platform", "")),
            "processor": ", ".join(filter(None, [machine[0], self.head.get("cpu", "")])),
            "cores": counts.get("cores", ""),
            "threads": threads or counts.get("torch threads", ""),
            "device": device,
        }
        if "cpu" not in self.head and properties["processor"]:
            properties["processor"] += f", model {NOT_RECORDED}"
        if device == "cuda":
            properties["GPU"] = self.head.get("cuda", "")
        properties = {key: value or NOT_RECORDED for key, value in properties.items()}
        libraries = (*LIBRARIES, *GPU_LIBRARIES) if device == "cuda" else LIBRARIES
        names = {*COMPUTING, *map(normalised, plugins), *(name for name in self.versions if name.startswith(libraries))}
        return properties | {name: self.versions[name] for name in sorted(names) if name in self.versions}


def differences(recorded: Mapping[str, str], now: Mapping[str, str]) -> tuple[EnvironmentDifference, ...]:
    """Return the differences between two environments."""
    return tuple(
        EnvironmentDifference(what, recorded.get(what, ABSENT), now.get(what, ABSENT))
        for what in dict.fromkeys([*recorded, *now])
        if recorded.get(what) != now.get(what)
    )


def requirements(distribution: str) -> list[str]:
    """Return the distributions that an installed distribution requires."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    matches = [REQUIREMENT.match(line) for line in lines if "extra ==" not in line]
    return [match[0] for match in matches if match is not None]


def normalised(name: str) -> str:
    """Return the normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _processor() -> str:
    try:  # Linux; on Arm the file has no model name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


@functools.cache
def _distributions() -> dict[str, str]:
    return dict(filter(None, map(_name_and_version, importlib.metadata.distributions())))


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str] | None:
    """Return the name of a distribution in lower case and its version; None if its metadata lacks one of them."""
    # Parse only two lines: to parse all metadata, README files included, takes ten times as long.
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    fields = {key: re.search(rf"^{key}: *(\S+)", text, re.MULTILINE) for key in ("Name", "Version")}
    name, version = fields["Name"], fields["Version"]
    return (name[1].lower(), version[1]) if name and version else None


def source_tags(without_secrets: Callable[[str], str]) -> dict[str, str]:
    """Return the tags that identify the machine, the process, the user, the command and the source code of a run."""
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(os.getpid()),
        # A process with the same id that starts after this time is another process.
        PROCESS_SEEN_TAG: f"{time.time():.3f}",
        USER_TAG: user_name(),
        COMMAND_TAG: without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        SOURCE_TYPE_TAG: "LOCAL",
        **git_tags(),
    }


def user_name() -> str:
    """Return the name of the current user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def git_tags() -> dict[str, str]:
    """Return the commit and the branch of the current folder as tags; empty outside of a repository."""
    tags = {}
    for tag, arguments in (
        (GIT_COMMIT_TAG, ("rev-parse", "HEAD")),
        (GIT_BRANCH_TAG, ("branch", "--show-current")),
    ):
        try:
            answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            break
        if text := answer.stdout.strip():
            tags[tag] = text
    return tags
