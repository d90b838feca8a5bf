import logging
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from cluster import progress as module
from cluster.progress import clock, progress, track


def test_track_yields_everything_and_ends_with_a_line(caplog):
    with caplog.at_level(logging.INFO):
        assert list(track((n * n for n in range(4)), "squaring", total=4)) == [0, 1, 4, 9]
    assert re.fullmatch(r"squaring: 4/4, .*/s, 0:00:00 so far", caplog.messages[-1])
    assert len(caplog.messages) == 1


def test_without_a_terminal_a_line_comes_now_and_then(caplog, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO), progress("train", total=10) as meter:
        meter.advance(5, note="loss 0.5")
        meter.update(6)
    assert [message.split(",")[0] for message in caplog.messages] == [
        "train: 5/10",
        "train: 6/10",
        "train: 6/10",
    ]
    assert all(message.endswith("loss 0.5") for message in caplog.messages)
    assert "left" in caplog.messages[0]


def test_in_a_terminal_there_is_a_bar_and_bars_nest(monkeypatch, capsys):
    monkeypatch.setattr(module, "CONSOLE", Console(stderr=True, force_terminal=True, width=120))
    for _ in track(range(2), "outer"):
        for _ in track(range(3), "inner"):
            pass
    err = capsys.readouterr().err
    assert "outer" in err
    assert "inner" in err
    assert err.endswith("\x1b[2K")  # and they are wiped at the end


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (61, "0:01:01"), (7322, "2:02:02")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_what_an_earlier_run_did_is_not_in_the_rate(caplog, monkeypatch):
    with caplog.at_level(logging.INFO), progress("train", total=1000, done=900) as meter:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: meter.started + 10))
        meter.update(950)
        assert str(meter) == "train: 950/1000, 5/s, 0:00:10 so far, 0:00:10 left"
