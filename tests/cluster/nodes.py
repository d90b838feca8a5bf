"""A Ray cluster of several nodes on one machine, each started as a person would start it."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

from tests.ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
LOCAL = "--node-ip-address=127.0.0.1"


def title_of(process):
    """Return what a process is called now; Ray calls its workers by what they do."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    # The shell that begins the learner again has its words, too.
    return "" if words and words[0].endswith("sh") else " ".join(words)


LIST_NODES = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps({node["NodeName"]: node["NodeID"] for node in ray.nodes()}))
"""


class Nodes:
    """The nodes, with a token without which nobody gets in.

    `folder` is for what Ray leaves behind, sockets among it: its name must be short.
    """

    def __init__(self, folder):
        self.port, self.dashboard, self.folder = free_port(), free_port(), folder
        self.processes = []
        self.names = {}
        self.env = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.env.pop("RAY_ADDRESS", None)

    @property
    def address(self):
        """Where jobs are taken."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, *arguments):
        """Start a node and return its process."""
        log = self.folder / f"node{len(self.processes)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [
                    *(RAY, "start", "--block", "--object-store-memory=150000000", *arguments),
                    # Its usual port may be another cluster's, and then the head takes no jobs.
                    f"--dashboard-agent-listen-port={free_port()}",
                ],
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a share of the processors of its own
            )
        self.processes.append(process)
        return process

    def start_head(self):
        """Start the head, which takes jobs and drives nothing."""
        process = self.start(
            *("--head", LOCAL, f"--port={self.port}", "--num-cpus=1", "--include-dashboard=true"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"),
            *(f"--temp-dir={self.folder}", f"--ray-client-server-port={free_port()}"),
        )
        end = time.monotonic() + 120
        while not self.answers():
            is_up = process.poll() is None and time.monotonic() < end
            assert is_up, (self.folder / "node0.log").read_text()
            time.sleep(0.5)
        return process

    def answers(self):
        """Tell whether the head takes jobs."""
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        try:
            with urlopen(Request(f"{self.address}/api/jobs/", headers=token), timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def start_worker(self):
        """Start a node with room for one actor."""
        name = f"worker{len(self.processes)}"
        process = self.start(
            *(f"--address=127.0.0.1:{self.port}", LOCAL, f"--node-name={name}"),
            *("--num-cpus=1", '--resources={"sim": 1}'),
        )
        self.names[process.pid] = name
        return process

    def give_way(self):
        """Let what runs now have what is left by what starts from now on.

        A node that joins brings processors of its own; here it would share those of all others.
        """
        for session in {os.getsid(process.pid) for process in self.family()}:
            Path(f"/proc/{session}/autogroup").write_text("19")

    def drain(self, process, seconds):
        """Announce the end of a node, as a cloud does of a spot machine, and end it then."""
        name, address = self.names[process.pid], f"127.0.0.1:{self.port}"
        # Not `ray list nodes`, which waits for the agents of nodes that are lost.
        listed = self.call(sys.executable, "-c", LIST_NODES, address)
        node = json.loads(listed.splitlines()[-1])[name]
        self.call(
            *(RAY, "drain-node", f"--address={address}", "--node-id", node),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"),
            *("--deadline-remaining-seconds", str(seconds)),
        )
        time.sleep(seconds)
        self.lose(process)

    def call(self, *command):
        """Run a command that must succeed; return what it says."""
        done = subprocess.run(
            command, env=self.env, check=False, capture_output=True, text=True, timeout=40
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lose(self, process):
        """End a node at once, with all that runs on it."""
        if process.poll() is None:  # what is drained may end by itself
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
        process.wait()

    def family(self):
        """Return the processes that run on the nodes now."""
        alive = [process for process in self.processes if process.poll() is None]
        return [each for p in alive for each in psutil.Process(p.pid).children(recursive=True)]

    def run(self, *command):
        """Run a command of `ray` against the cluster."""
        return subprocess.run(
            [RAY, *command, f"--address={self.address}"],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def num_driving(self):
        """Count the actors that have begun to drive, by what Ray calls their processes."""
        return len(self.called("RolloutActor")) - len(self.called("RolloutActor.__init__"))

    def called(self, *words):
        """Return the processes on the nodes whose title has one of these in it."""
        family = [(process, title_of(process)) for process in self.family()]
        return [process for process, title in family if any(word in title for word in words)]

    def num_actors(self):
        """Count the actors that are alive and drive."""
        listed = self.run("list", "actors", "--filter", "state=ALIVE")
        return listed.stdout.count("RolloutActor")

    def close(self):
        """End all nodes, at once: they take half a minute to end by themselves."""
        for process in reversed(self.processes):
            self.lose(process)
