"""Say on what a run computed, and in which of the things that numbers depend on two such accounts differ."""

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
    """One thing, of those that numbers depend on, that is otherwise than where the run was made."""

    what: str
    recorded: str
    now: str


#: the distributions whose code computes: of images, of models, of metrics
COMPUTING = ("mlxtend", "numpy", "pillow", "scikit-learn", "scipy", "torch", "torchvision")
#: what these bring along to compute with, by how their names begin; on a GPU alone
LIBRARIES, GPU_LIBRARIES = ("intel-openmp", "mkl"), ("nvidia-", "rocm")
NOT_RECORDED, ABSENT = "not recorded", "none"
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def environment() -> str:
    """Return versions of adaptkit, Python, the machine's system and every installed distribution."""
    import torch

    lines = [
        f"adaptkit {__version__}",
        f"python {platform.python_version()}",
        f"platform {platform.platform()}",
        f"processor {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        # Which instructions torch takes, and of whose making: sums are in another order with others.
        f"cpu {torch.backends.cpu.get_cpu_capability()}, {_processor()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"cuda {torch.version.cuda}, {torch.cuda.get_device_name()}")
    return "\n".join([*lines, "", *(f"{name}=={version}" for name, version in sorted(_distributions().items())), ""])


@dataclass(frozen=True)
class Environment:
    """What an `environment.txt` says: what begins each line of its head, with the rest, and distributions' versions."""

    head: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Environment:
        """Read the text of an `environment.txt`; what it does not say is left out."""
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
        """Return the things that a run's numbers depend on by what they are called, and what they are here.

        `threads` are those that the run itself says, `plugins` the distributions of the plugins that it needs. What has
        no part in numbers is left out: the kernel's version, and every other distribution.
        """
        machine = [part.strip() for part in self.head.get("processor", "").split(",")]
        cores, own_threads = (next((part.split()[0] for part in machine if part.endswith(end)), "") for end in _COUNTS)
        found = {
            "adaptkit": self.head.get("adaptkit", ""),
            "Python": ".".join(self.head.get("python", "").split(".")[:2]),
            "system": re.sub(r"^Linux-.*-with-", "Linux, ", self.head.get("platform", "")),
            "processor": ", ".join(filter(None, [machine[0], self.head.get("cpu", "")])),
            "cores": cores,
            "threads": threads or own_threads,
            "device": device,
        }
        if "cpu" not in self.head and found["processor"]:
            found["processor"] += f", model {NOT_RECORDED}"
        if device == "cuda":
            found["GPU"] = self.head.get("cuda", "")
        found = {key: value or NOT_RECORDED for key, value in found.items()}
        libraries = (*LIBRARIES, *GPU_LIBRARIES) if device == "cuda" else LIBRARIES
        asked = {*COMPUTING, *map(normalised, plugins), *(name for name in self.versions if name.startswith(libraries))}
        return found | {name: self.versions[name] for name in sorted(asked) if name in self.versions}


_COUNTS = (" cores", " torch threads")


def differences(recorded: Mapping[str, str], now: Mapping[str, str]) -> tuple[EnvironmentDifference, ...]:
    """Return in which of the things that numbers depend on two environments differ."""
    return tuple(
        EnvironmentDifference(what, recorded.get(what, ABSENT), now.get(what, ABSENT))
        for what in dict.fromkeys([*recorded, *now])
        if recorded.get(what) != now.get(what)
    )


def requirements(distribution: str) -> list[str]:
    """Return the distributions that an installed one says it cannot do without."""
    try:
        said = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [REQUIREMENT.match(line) for line in said if "extra ==" not in line]
    return [match[0] for match in found if match is not None]


def normalised(name: str) -> str:
    """Return a distribution's name as all its spellings are written."""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _processor() -> str:
    try:  # Linux; its machines of Arm give no name there
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


@functools.cache
def _distributions() -> dict[str, str]:
    return dict(filter(None, map(_name_and_version, importlib.metadata.distributions())))


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str] | None:
    """Return a distribution's name, in small letters, and its version; None when its metadata does not say."""
    # Only the lines needed: to parse all metadata, README files included, takes ten times as long.
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    found = {key: re.search(rf"^{key}: *(\S+)", text, re.MULTILINE) for key in ("Name", "Version")}
    name, version = found["Name"], found["Version"]
    return (name[1].lower(), version[1]) if name and version else None


def source_tags(without_secrets: Callable[[str], str]) -> dict[str, str]:
    """Return the tags that say which process of whom, on which machine, makes a run, and from which code."""
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(os.getpid()),
        # A process of this number that began later than this is another one.
        PROCESS_SEEN_TAG: f"{time.time():.3f}",
        USER_TAG: user_name(),
        COMMAND_TAG: without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        SOURCE_TYPE_TAG: "LOCAL",
        **git_tags(),
    }


def user_name() -> str:
    """Return the name of the user who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def git_tags() -> dict[str, str]:
    """Return the commit and branch of the current folder as MLflow's tags; none outside of a repository."""
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
