"""One policy of a sweep, in a process of Ray Tune's: trained, then scored.

Training and scoring are the jobs that anyone would call, each a process of its own on the same Ray
cluster, with its log and its signs of life in the policy's folder. What is done is not done again;
a training that died goes on from its checkpoint when the trial is tried again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.child_processes import interrupt_with_parent
from cluster.config import load, load_text
from cluster.evaluate_policy import EvaluatePolicyRun
from cluster.kept import TRAINING, kept
from cluster.output import write_text
from cluster.score_report import whole
from cluster.train_policy import TrainPolicyRun

CODE = Path(__file__).parent.parent
OUTPUT = "output.txt"  # what its jobs say, in the policy's folder
USERS_MISTAKE = 2  # exit code of `drive`


class JobError(ValueError):
    """A job that cannot be done as asked: to try it again would not help."""


def train_and_score(point: Mapping[str, Any]) -> dict[str, str]:
    """Do what is not done of one policy; return the `problem` if it cannot be done, else "".

    point: `folder`, of the policy, which holds its training; `scores`, the runs of evaluate-policy
    as YAML by name; `directory`, from where paths in them are meant. RuntimeError for a job that
    died, which may be tried again.
    """
    folder, directory = Path(point["folder"]), Path(point["directory"])
    if not (folder / TRAINING).exists():
        there = f"{folder} is not there on {ray.util.get_node_ip_address()}"
        return {"problem": f"{there}: a sweep's output must be a folder that all nodes share"}
    training = load(TrainPolicyRun, folder / TRAINING)
    try:
        kept(
            folder / "trained.json",
            training,
            lambda: do(["train-policy", str(folder / TRAINING)], folder, folder, directory),
        )
        for name, score in point["scores"].items():
            pages = folder / "scores" / name
            pages.mkdir(parents=True, exist_ok=True)
            write_text(pages / "score.yaml", score)
            words = ["evaluate-policy", str(pages / "score.yaml"), f"policy={folder}"]
            kept(
                pages / "scored.json",
                load_text(EvaluatePolicyRun, score),
                lambda words=words, pages=pages: whole(do(words, pages, folder, directory)),
            )
    except JobError as error:
        return {"problem": str(error)}
    return {"problem": ""}


def do(words: Sequence[str], output: Path, folder: Path, directory: Path) -> dict[str, Any]:
    """Do a job of `drive` in a process of its own; return its figures."""
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with (folder / OUTPUT).open("a+") as said:
        begin = said.seek(0, os.SEEK_END)
        done = subprocess.run(
            [sys.executable, "-m", "cluster", *words, f"output={output}"],
            cwd=directory if directory.is_dir() else None,
            env=os.environ | told,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            check=False,
            preexec_fn=interrupt_with_parent,
        )
        said.seek(begin)
        last = next((line for line in reversed(said.readlines()) if line.strip()), "").strip()
    if done.returncode == USERS_MISTAKE:
        raise JobError(last.removeprefix("drive: "))
    if done.returncode:
        cause = f"ended with {done.returncode} ({last})"
        raise RuntimeError(f"{words[0]} {cause}; see {folder / OUTPUT}")
    return json.loads(done.stdout.splitlines()[-1])
