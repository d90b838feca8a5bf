"""`drive submit COMMAND`: do on a cluster what `drive COMMAND` does here.

The command is checked on this machine, packed with the code and handed to the cluster through Ray's
job interface; its log is followed to the end, and the last line and the exit code are its own. On
the cluster the job runs in the folder `storage`: there it looks for a relative `data`, and there it
leaves `runs/NAME`, where the same command goes on from its last checkpoint. The environment must be
on the nodes already (`cluster/setup.sh`); the code need not, what is packed is used.

A job goes on when this process ends: the same `submit.id` follows it again.
"""

import asyncio
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.jobs import OURS, resolve

log = logging.getLogger(__name__)

# Of the exit codes of `drive`: what the user has to mend is not mended by trying again.
FINAL = (0, 2, 130)
PATIENCE = 60.0  # s
NO_AGENT = "No available agent to submit job"
NEEDS_PORT = (
    "; where another cluster runs on the head's machine it holds the port that this needs: "
    "`ray start --dashboard-agent-listen-port` with a free one"
)


@dataclass(frozen=True, kw_only=True)
class SubmitRun:
    """One submission; on the command line its keys begin with `submit.`.

    command: what would stand after `drive`. address: of the cluster's dashboard, as
    http://127.0.0.1:8265, or of its head as host:port; null is RAY_API_SERVER_ADDRESS, RAY_ADDRESS
    or the cluster that runs on this machine. id: of the job; null makes one up. storage: the folder
    on the cluster that the job works in; with actors on several nodes, all of them must see it
    under this name. python: on the cluster. num_cpus, num_gpus, resources: held for the job's own
    process, which learns; it may run wherever there is room for them, and `{learner: 1}` keeps it
    on the node that the specs have for it. max_restarts: times that the job's process is begun
    again, from its last checkpoint, when it dies. follow: wait for its end.
    """

    command: tuple[str, ...]
    address: str | None = None
    id: str | None = None
    storage: str = "~/drive"
    python: str = "python"
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    max_restarts: int = 3
    follow: bool = True

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"submit.max_restarts is {self.max_restarts}, not 0 or more")


class SubmitError(ValueError):
    """A cluster that does not answer, or a job that ended badly there."""

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def run(config: SubmitRun, output: Path) -> dict[str, Any]:
    """Submit, follow, and return the job's figures; `output` gets its log as `job.txt`."""
    from cluster.main import parse

    command = parse(config.command)
    overrides = [f"topic={command.topic}"] if command.topic else []
    resolved = resolve(command.job, command.path, [*overrides, *command.overrides])
    client = connect(config.address)
    name = config.id or f"{command.title}-{datetime.now():%Y%m%d-%H%M%S}"
    known = {job.submission_id: job.status for job in client.list_jobs()}
    if name not in known:
        words = [command.job, f"{command.title}.yaml"]
        if command.output:
            words.append(f"output={command.output}")
        start(client, config, name, words, resolved.text)
    elif known[name].is_terminal():
        raise SubmitError(
            f"the cluster has had a job {name!r} ({known[name].lower()}): choose another submit.id"
        )
    log.info("job %s; `ray job stop %s` ends it", name, name)
    if not config.follow:
        return {"job": name, "status": str(client.get_job_status(name))}
    with (output / "job.txt").open("w") as file:
        try:
            last = asyncio.run(follow(client, name, file))
        except KeyboardInterrupt:
            log.info("the job goes on: the same command with submit.id=%s follows it", name)
            raise
    return {"job": name} | outcome(client, name, last)


def connect(address: str | None) -> JobSubmissionClient:
    """Reach the cluster's job interface; SubmitError when nothing answers there."""
    if address is not None:
        # Ray would take what the environment says in place of the argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        raise SubmitError(
            f"no cluster takes jobs at {where or 'this machine'}: give submit.address, open the "
            f"way to it (`ray dashboard CLUSTER.yaml`), and where it asks for a token have it in "
            f"~/.ray/auth_token with RAY_AUTH_MODE=token ({' '.join(str(error).split())[:200]})"
        ) from error


def start(
    client: JobSubmissionClient, config: SubmitRun, name: str, words: Sequence[str], run_text: str
) -> None:
    """Pack the code with the run as `words[1]` and hand both to the cluster."""
    with tempfile.TemporaryDirectory(prefix="drive-submit-") as folder:
        for package in OURS:
            spec = find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(Path(spec.origin).parent, Path(folder, package), ignore=ignored)
        Path(folder, words[1]).write_text(run_text)
        try:
            client.submit_job(
                entrypoint=entrypoint(config, words),
                submission_id=name,
                runtime_env={"working_dir": folder},
                entrypoint_num_cpus=config.num_cpus,
                entrypoint_num_gpus=config.num_gpus,
                entrypoint_resources=dict(config.resources),
            )
        except RuntimeError as error:
            mend = NEEDS_PORT if NO_AGENT in str(error) else ""
            raise SubmitError(f"the cluster refused the job: {error}{mend}") from error


def entrypoint(config: SubmitRun, words: Sequence[str]) -> str:
    """Write what the cluster's shell does, which begins in the packed folder.

    A process that dies is begun again, and goes on from its checkpoint; one that says what the user
    has to mend is not.
    """
    job, run, *rest = words
    storage = shlex.quote(config.storage)
    if config.storage == "~" or config.storage.startswith("~/"):
        storage = '"$HOME"' + shlex.quote(config.storage[1:])
    # -P: the code is what was packed, also where the storage holds another copy of it.
    command = f'PYTHONPATH="$code" {shlex.quote(config.python)} -P -m cluster {job}'
    arguments = shlex.join(rest)
    final = "|".join(str(code) for code in FINAL)
    return (
        f"code=$PWD; mkdir -p {storage} && cd {storage} || exit 2; left={config.max_restarts}; "
        f'while true; do {command} "$code"/{shlex.quote(run)} {arguments}; status=$?; '
        f"case $status in {final}) exit $status;; esac; "
        f"if [ $left -le 0 ]; then exit $status; fi; left=$((left-1)); "
        f'echo "drive submit: the job ended with $status, it is begun again" >&2; done'
    )


async def follow(client: JobSubmissionClient, name: str, file: TextIO) -> str:
    """Show the job's log to its end, keep it in `file`, and return its last line.

    SubmitError when the cluster has not answered for `PATIENCE` seconds.
    """
    text, is_over = "", False
    silent_since: float | None = None  # a job that says nothing is no cluster that does not answer
    while not is_over:
        position = 0
        try:
            is_over = client.get_job_status(name).is_terminal()
            silent_since = None
            async for chunk in client.tail_job_logs(name):
                # A connection made anew tells the log from its beginning.
                news = chunk[max(len(text) - position, 0) :]
                position += len(chunk)
                text += news
                for each in (file, sys.stderr):
                    each.write(news)
                    each.flush()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            log.warning("the job's log broke off, asking again: %s", error)
            now = time.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now > silent_since + PATIENCE:
                raise SubmitError(
                    f"the cluster does not answer any more; where it is still up, job {name} goes "
                    f"on, and submit.id={name} follows it",
                    exit_code=1,
                ) from error
        await asyncio.sleep(1)
    return text.rstrip().rpartition("\n")[2]


def outcome(client: JobSubmissionClient, name: str, last: str) -> dict[str, Any]:
    """Return the figures of a job that is over; SubmitError with its exit code when it failed."""
    info = client.get_job_info(name)
    if info.status != JobStatus.SUCCEEDED:
        raise SubmitError(
            f"job {name} {info.status.lower()}: {' '.join((info.message or '').split())[:300]}",
            exit_code=info.driver_exit_code or 1,
        )
    try:
        figures = json.loads(last)
    except json.JSONDecodeError:
        raise SubmitError(f"job {name} ended without figures; its log is in job.txt", 1) from None
    return {"status": str(info.status), **figures}
