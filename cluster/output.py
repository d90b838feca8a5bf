"""What a job leaves behind: `runs/NAME/` with the run as resolved, the result and the log.

A directory belongs to one resolved run. The same run again finds its directory (and there its
checkpoints), also after an update that brought new settings, as long as these are at their
defaults; another run of the same name gets `NAME-2`, `NAME-3`, ... Nothing is overwritten by a
different run unless the command names the directory itself (`output=PATH`).

stdout carries one line, the headline figures as JSON; all words go to stderr.
"""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import math
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from cluster.config import load_kept
from cluster.jobs import OURS, Resolved
from cluster.progress import CONSOLE

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "ray", "gymnasium", "metadrive-simulator", "numpy", "pyarrow")


def choose_directory(name: str, run: Resolved, chosen: Path | None) -> Path:
    """Create and return the directory of a run, with its `run.yaml`."""
    if chosen is not None:
        directory = chosen
        if not is_free_for(run, directory):
            logger.warning("%s held another run, which this one replaces", directory)
    else:
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        directory = next(
            path for path in (Path("runs", name) for name in names) if is_free_for(run, path)
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "run.yaml", run.text)
    return directory


def is_free_for(run: Resolved, directory: Path) -> bool:
    """Tell whether a directory is of no run yet, or of this one."""
    try:
        text = (directory / "run.yaml").read_text()
    except FileNotFoundError:
        return True
    # The first line names the job, which the settings do not.
    is_same_job = text.partition("\n")[0] == run.text.partition("\n")[0]
    return is_same_job and load_kept(type(run.config), text) == run.config


def write_result(
    directory: Path, job: str, command: Sequence[str], figures: Mapping[str, Any], seconds: float
) -> None:
    """Write `result.json`: the figures, and what is needed to make them again."""
    result = {
        "job": job,
        "command": ["drive", *command],
        "figures": plain(figures),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    write_text(directory / "result.json", json.dumps(result, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def plain(value: Any) -> Any:
    """Turn figures into what JSON has: numpy and torch scalars to numbers, not finite to null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(figures: Mapping[str, Any]) -> str:
    """Write the figures on one line."""
    return json.dumps(plain(figures))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Return the cores this process may use and the name of the processor."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"cores": len(os.sched_getaffinity(0)), "cpu": model}


def commit() -> str | None:
    """Return the git commit of this code, marked where it was changed since; None outside git."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


@contextlib.contextmanager
def log_into(path: Path, is_debug: bool = False) -> Iterator[None]:
    """Log to stderr and to a file meanwhile; what the block raises leaves its traceback there."""
    level = logging.DEBUG if is_debug else logging.INFO
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if CONSOLE.is_terminal:
        shown = RichHandler(console=CONSOLE, show_path=False, show_level=False)
    else:
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    # Some libraries call logging.basicConfig when they are imported: each line would come twice.
    strangers = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    for handler in strangers:
        root.removeHandler(handler)
    for handler in (file, shown):
        root.addHandler(handler)
    for package in OURS:
        logging.getLogger(package).setLevel(level)
    try:
        yield
    except BaseException:
        with path.open("a") as log:
            traceback.print_exc(file=log)
        raise
    finally:
        for handler in (file, shown):
            root.removeHandler(handler)
            handler.close()
        for handler in strangers:
            root.addHandler(handler)


@contextlib.contextmanager
def words_to_stderr() -> Iterator[None]:
    """Send to stderr what anyone prints meanwhile, also from C and from child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
