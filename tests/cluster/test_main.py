import json
import logging
import os
import signal
import subprocess
import sys

import pytest

import cluster
from cluster.jobs import JOBS, Job
from cluster.main import main, sentence_of_actor

TINY = '''
"""Add two numbers, or fail in the way that is asked for."""

import logging
import os
from dataclasses import dataclass, field

import numpy as np

from cluster.progress import track

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One thing to add."""

    value: float = 1.0
    """apples"""

    def __post_init__(self):
        if self.value > 99:
            raise ValueError(f"value must be 99 or less, got {self.value}")


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """A sum."""

    # what to add to it
    # (twice)
    term: Term = Term(value=2.0)
    other: float = field(default_factory=lambda: 3.0)  # pears
    topic: str = "none"
    how: str = "well"


def run(config, output):
    logger.info("a word")
    print("a stray word")
    os.system("echo a word of a child")
    for _ in track(range(3), "adding"):
        pass
    match config.how:
        case "ours":
            raise ValueError("the apples\\n are eaten")
        case "library":
            np.zeros(3).reshape(2, 2)
        case "file":
            open("nothing.parquet")
        case "bug":
            {}["key"]
        case "interrupt":
            raise KeyboardInterrupt
    total = np.float64(config.term.value + config.other)
    return {"sum": total, "worst": float("nan"), "parts": (np.int64(1), output)}
'''


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Add a small real job to the table, and work in an empty directory."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "tiny.yaml").write_text("other: 4\n")
    monkeypatch.setattr(cluster, "__path__", [*cluster.__path__, str(tmp_path)])
    monkeypatch.setattr("cluster.main.RUNS", tmp_path)
    monkeypatch.delitem(sys.modules, "cluster.tiny", raising=False)
    tiny = Job(module="cluster.tiny", schema="TinyRun", runs=("tiny",), summary="", topics=("a",))
    monkeypatch.setitem(JOBS, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stdout_is_one_line_of_json_and_words_go_to_stderr(job, capfd):
    assert main(["tiny", "term.value=5"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"sum": 9.0, "worst": None, "parts": [1, "runs/tiny"]}
    assert out.count("\n") == 1
    for words in ("a word", "a stray word", "a word of a child", "adding: 3/3"):
        assert words in err


def test_the_directory_holds_the_run_the_result_and_the_log(job, capfd):
    main(["tiny", "term.value=5"])
    text = (job / "runs/tiny/run.yaml").read_text()
    assert text.startswith("# drive tiny\n")
    assert "value: 5.0" in text
    result = json.loads((job / "runs/tiny/result.json").read_text())
    assert result["figures"]["sum"] == 9.0
    assert result["command"] == ["drive", "tiny", "term.value=5"]
    assert result["versions"]["python"].startswith("3.11")
    assert result["machine"]["cores"] >= 1
    assert result["seconds"] >= 0
    assert "a word" in (job / "runs/tiny/log.txt").read_text()


def test_a_directory_belongs_to_one_resolved_run(job, capfd):
    for _ in range(2):
        main(["tiny"])
        main(["tiny", "other=5"])
        main(["tiny", "a"])
        main(["tiny", "runs/tiny-2/run.yaml"])
    assert sorted(path.name for path in (job / "runs").iterdir()) == ["tiny", "tiny-2", "tiny-a"]
    assert "topic: a" in (job / "runs/tiny-a/run.yaml").read_text()
    main(["tiny", "other=6", "output=elsewhere/x"])
    assert "other: 6.0" in (job / "elsewhere/x/run.yaml").read_text()


def test_a_run_finds_its_directory_again_after_an_update_with_new_settings(job, capfd):
    main(["tiny"])
    run = job / "runs/tiny/run.yaml"
    older = [line for line in run.read_text().splitlines() if "how:" not in line]
    run.write_text("\n".join(older) + "\n")
    main(["tiny"])
    assert "how:" in run.read_text()
    assert not (job / "runs/tiny-2").exists()
    run.write_text("# drive other\n" + "\n".join(older[1:]) + "\n")
    main(["tiny"])
    assert (job / "runs/tiny-2").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tinny"], "there is no job 'tinny'; did you mean 'tiny'?"),
        (["zzz"], "there is no job 'zzz'; there are demo, record,"),
        (["tiny", "other"], "'other' is not understood after 'drive tiny'"),
        (["tiny", "b"], "one of a, then at most one .yaml"),
        (["tiny", "x.yaml"], "x.yaml: no such file"),
        (["tiny", "tiny.yaml", "tiny.yaml"], "'tiny.yaml' is not understood"),
        (["tiny", "othr=3"], "command line: unknown key 'othr'; did you mean 'other'?"),
        (["tiny", "term.value=100"], "command line: term: value must be 99 or less, got 100.0"),
        (["tiny", "how=ours"], "the apples are eaten"),
        (["tiny", "how=file"], "nothing.parquet: No such file or directory"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(job, capsys, words, message):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("drive: ")
    assert message in last
    assert "Traceback" not in err
    if "how" not in words[-1]:
        assert err.count("\n") == 1


def test_a_line_comes_once_whatever_a_library_did_to_logging(job, capsys):
    stranger = logging.StreamHandler()
    logging.getLogger().addHandler(stranger)
    try:
        main(["tiny"])
        assert stranger in logging.getLogger().handlers
    finally:
        logging.getLogger().removeHandler(stranger)
    assert capsys.readouterr().err.count("a word\n") == 1


def test_the_log_keeps_the_traceback_of_an_error_of_one_line(job, capsys):
    main(["tiny", "how=ours"])
    assert "Traceback" in (job / "runs/tiny/log.txt").read_text()


@pytest.mark.parametrize(("how", "error"), [("bug", KeyError), ("library", ValueError)])
def test_our_own_mistakes_are_not_taken_for_the_users(job, capsys, how, error):
    with pytest.raises(error):
        main(["tiny", f"how={how}"])


ACTOR = """The actor died because of an error raised in its creation task, ray::A.__init__()
  File "a.py", line 4, in __init__
    open_dataset()
{}"""


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("drive_envs.segment.SegmentError: x.parquet: no such file", "x.parquet: no such file"),
        ("ValueError: width must be even", "width must be even"),
        ("KeyError: 'x'", None),
        ("", None),
    ],
)
def test_an_error_in_the_making_of_an_actor_is_read_from_its_text(last, expected):
    assert sentence_of_actor(ACTOR.format(last)) == expected


def test_debug_raises_what_else_is_one_line(job, capsys):
    with pytest.raises(ValueError, match="the apples"):
        main(["tiny", "how=ours", "--debug"])


def test_interrupt(job, capsys):
    assert main(["tiny", "how=interrupt"]) == 130
    assert capsys.readouterr().err.endswith("drive: interrupted\n")


def test_help_names_every_job_and_a_jobs_help_every_key(job, capsys):
    assert main(["--help"]) == 0
    assert main([]) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in ["demo"])
    assert main(["tiny", "--help"]) == 0
    text = capsys.readouterr().out
    for words in (
        "Add two numbers",
        "drive tiny [TOPIC] [run.yaml]",
        "  term: Term = Term(value=2.0)\n      what to add to it\n      (twice)\n",
        "    One thing to add.\n  term.value: float = 1.0\n      apples\n",
        "  other: float = 3.0\n      pears\n",
        "tiny.yaml:\n  other: 4\n",
    ):
        assert words in text
    assert "cluster.tiny" not in sys.modules


def test_help_is_instant():
    script = (
        "import sys; from cluster.main import main, sentence_of_actor; main(['--help']);"
        "sys.exit(len({'torch', 'ray', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", script], os.environ)
    _, status, used = os.wait4(child, 0)
    assert status == 0
    # Processor time, and of this child alone, for the machine may be busy with other tests.
    assert used.ru_utime + used.ru_stime < 0.3


def test_what_ray_train_says_every_second_where_there_is_no_dashboard_is_not_heard():
    script = (
        "from cluster.main import main; main(['--help'])\n"
        "from ray._private.ray_constants import RAY_DEDUP_LOGS_SKIP_REGEX as pattern\n"
        "from ray._private.ray_logging import LogDeduplicator\n"
        "from ray.train.v2._internal.execution.controller import placement_group_cleaner as said\n"
        "assert pattern in open(said.__file__).read()\n"
        "lines = [f'WARNING {pattern}. State API may be unavailable.', 'anything else']\n"
        "[heard] = LogDeduplicator(5, None, pattern).deduplicate({'pid': 1, 'lines': lines})\n"
        "assert heard['lines'] == ['anything else'], heard\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_DEDUP_LOGS_SKIP_REGEX"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_ctrl_c_exits_with_130(tmp_path):
    script = (
        "import signal, sys, time, cluster.main as m\n"
        # A parent in the background of a shell ignores Ctrl-C, and hands that on.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "m.run = lambda *_: (print('ready', flush=True), time.sleep(60))\n"
        "sys.exit(m.main(['demo']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "drive: interrupted\n")
