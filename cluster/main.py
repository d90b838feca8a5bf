"""`drive JOB [run.yaml] [dotted.key=value ...]`: the command line.

A job is a module of this package with a frozen run dataclass and `run(config, output) -> figures`.
Nothing heavy is imported before a job is chosen, so that help is instant.

Exit codes: 0; 2 for what the user can mend, said in one line; 1 with a traceback for our own
mistakes; 130 after Ctrl-C. The user's are the ValueErrors that this code raises, which name the
thing and the mend, and every OSError (no such file, disk full). A ValueError from inside a
library was not foreseen, so it is ours. The log in the output directory has every traceback.
"""

import difflib
import dis
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.jobs import JOBS, OURS, RUNS, do, resolve

logger = logging.getLogger(__name__)

RAISE = dis.opmap["RAISE_VARARGS"]

# Ray Train asks the dashboard every second whether its run still lives, and says that there is
# none; a Ray of our own has none by default, and ends with the run. Ray reads this on import.
UNHEARD = "Failed to query Ray Train Controller actor state"

USAGE = "usage: drive JOB [run.yaml] [dotted.key=value ...] [output=PATH] [--debug]"


class CommandError(ValueError):
    """A command line that cannot be understood."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, taken apart."""

    job: str
    topic: str | None
    path: Path
    overrides: tuple[str, ...]
    output: Path | None

    @property
    def title(self) -> str:
        """The name of the output directory, if it is not taken."""
        # A run.yaml as resolved goes on in the directory where it was left.
        stem = self.path.resolve().parent.name if self.path.name == "run.yaml" else self.path.stem
        return f"{stem}-{self.topic}" if self.topic else stem


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", UNHEARD)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if (text := help_asked(words)) is not None:
            sys.stdout.write(text)
        else:
            run(parse(words), words, is_debug)
    except KeyboardInterrupt:
        sys.stderr.write("drive: interrupted\n")
        return 130
    except Exception as error:
        # Nothing is swallowed: what is not told in one line is raised again.
        told = sentence(error)
        if is_debug or told is None:
            raise
        sys.stderr.write(f"drive: {told}\n")
        return getattr(error, "exit_code", 2)
    return 0


def run(command: Command, words: Sequence[str], is_debug: bool) -> None:
    """Do the job and print its figures."""
    from cluster.output import as_json, choose_directory, log_into, words_to_stderr

    with words_to_stderr():
        overrides = [f"topic={command.topic}"] if command.topic else []
        resolved = resolve(command.job, command.path, [*overrides, *command.overrides])
        directory = choose_directory(command.title, resolved, command.output)
        with log_into(directory / "log.txt", is_debug):
            logger.info("drive %s, into %s", command.job, directory)
            figures = do(resolved, directory, words)
    sys.stdout.write(as_json(figures) + "\n")


def parse(words: Sequence[str]) -> Command:
    """Take a command line apart. Raises `CommandError`, which says what would be understood."""
    name, *rest = words
    if name not in JOBS:
        raise CommandError(f"there is no job {name!r}{nearest(name, JOBS)}")
    if name == "submit":
        return parse_submission(rest)
    job = JOBS[name]
    topic = rest.pop(0) if rest and rest[0] in job.topics else None
    path = RUNS / f"{job.runs[0]}.yaml"
    if rest and "=" not in rest[0] and rest[0].endswith((".yaml", ".yml")):
        path = Path(rest.pop(0))
    if wrong := next((word for word in rest if "=" not in word or word.startswith("-")), None):
        topics = f"one of {', '.join(job.topics)}, then " if job.topics else ""
        raise CommandError(
            f"{wrong!r} is not understood after 'drive {name}': give {topics}at most one .yaml, "
            f"then dotted.key=value{nearest(wrong, job.topics)}"
        )
    outputs = [word.partition("=")[2] for word in rest if word.startswith("output=")]
    return Command(
        job=name,
        topic=topic,
        path=path,
        overrides=tuple(word for word in rest if not word.startswith("output=")),
        output=Path(outputs[-1]) if outputs else None,
    )


def parse_submission(words: Sequence[str]) -> Command:
    """Take apart what follows `drive submit`: a command of its own, and keys of the submission.

    `--address URL` is short for `submit.address=URL`. A run's YAML alone is one of train-policy.
    """
    own, command, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "--address" and rest:
            own.append(f"address={rest.pop(0)}")
        elif word.startswith("submit."):
            own.append(word.removeprefix("submit."))
        else:
            command.append(word)
    if command and command[0].endswith((".yaml", ".yml")):
        command.insert(0, "train-policy")
    if not command:
        raise CommandError("nothing to submit: give the command that would stand after `drive`")
    return Command(
        job="submit",
        topic=None,
        path=RUNS / f"{JOBS['submit'].runs[0]}.yaml",
        overrides=(*own, f"command={json.dumps(command)}"),
        output=Path("runs", f"submit-{parse(command).title}"),
    )


def help_asked(words: Sequence[str]) -> str | None:
    """Return the help text that the command line asks for, if it does."""
    is_asked = not words or any(word in ("-h", "--help", "help") for word in words)
    if not is_asked:
        return None
    if words and words[0] in JOBS:
        from cluster.manual import manual

        job = JOBS[words[0]]
        shipped = [RUNS / f"{name}.yaml" for name in job.runs]
        usage = USAGE.replace("JOB", " ".join([words[0], *(["[TOPIC]"] if job.topics else [])]))
        return f"{usage}\n\n{manual(job.module, job.schema, shipped)}"
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:{width}}  {job.summary}" for name, job in JOBS.items())
    return f"""{USAGE}

{jobs}

Each job has a shipped default run; `drive JOB --help` shows its keys and what they mean.
Results go to runs/NAME/, the last line of stdout is one JSON object with the headline figures.
"""


def sentence(error: BaseException) -> str | None:
    """Return one line for the user, or None if the error is a mistake of ours."""
    if getattr(error, "actor_init_failed", False):
        return sentence_of_actor(str(error))
    # Ray hands on a worker's error as the cause of its own, without its traceback.
    cause = getattr(error, "cause", None)
    if not isinstance(cause, ValueError) and not is_for_the_user(error):
        return None
    error = cause or error
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def is_for_the_user(error: BaseException) -> bool:
    """Tell whether this process raised the error for the user."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in OURS:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if not isinstance(error, ValueError) or trace is None:
        return False
    # A function in C leaves no frame: its errors seem to come from the line that called it.
    is_raised_here = trace.tb_frame.f_code.co_code[trace.tb_lasti] == RAISE
    module = trace.tb_frame.f_globals.get("__name__", "")
    return is_raised_here and module.partition(".")[0] in OURS


def sentence_of_actor(text: str) -> str | None:
    """Find the error that an actor raised as it was made: Ray keeps it only as printed."""
    found = re.findall(r"^([\w.]+): (.+)$", text, re.MULTILINE)
    kind, words = found[-1] if found else ("", "")
    is_told = kind == "ValueError" or kind.partition(".")[0] in OURS
    return words if is_told else None


def nearest(word: str, known: Collection[str]) -> str:
    """Return a clause that names the nearest of the known words, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""
