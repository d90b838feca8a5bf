from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from cluster.config import ConfigError, dump, load


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    speed: float = 10.0
    num_delay_steps: int = 1
    gain: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        if self.num_delay_steps < 0:
            raise ValueError(f"num_delay_steps must be 0 or more, got {self.num_delay_steps}")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    kind: Literal["recorded"] = "recorded"
    path: Path = Path("sample.parquet")
    split: Literal["train", "held_out"] | None = None


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    kind: Literal["synthetic"] = "synthetic"
    num_frames: int = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    vehicle: Vehicle = Vehicle(speed=12.0)
    data: Recorded | Synthetic = Recorded(split="train")
    fallback: Synthetic | None = None
    fleet: tuple[Vehicle, ...] = (Vehicle(), Vehicle(speed=5.0))
    horizons: tuple[int, ...] = (5, 10)
    bits: float | None = 700
    learning_rate: float = 3e-4
    is_fast: bool = False
    weights: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: a\n")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"horizons": (3,), "bits": None},
        {"bits": float("inf"), "learning_rate": 1e-9},
        {"data": Synthetic(num_frames=3), "fallback": Synthetic()},
        {"data": Recorded(path=Path("/a b/c.parquet"), split="held_out")},
        {"vehicle": Vehicle(gain=(0.5, 2.0)), "fleet": (Vehicle(speed=3.0),)},
        {"name": "off", "weights": {"plan": 1.0, "1e3": 0.5}},
        {"name": "2024-01-01"},
        {"name": "012"},
        {"name": "1e-3"},
        {"name": "~"},
    ],
)
def test_round_trip(path, changes):
    run = replace(Run(name="a"), **changes)
    path.write_text(dump(run))
    assert load(Run, path) == run


def test_no_file_gives_the_schema_with_overrides():
    assert load(Run, overrides=["name=b"]) == Run(name="b")
    assert load(Vehicle) == Vehicle()


def test_a_nested_key_keeps_the_other_defaults_of_its_place(path):
    run = load(Run, path, ["vehicle.num_delay_steps=3", "data.path=x.parquet"])
    assert run.vehicle == Vehicle(speed=12.0, num_delay_steps=3)
    assert run.data == Recorded(path=Path("x.parquet"), split="train")


def test_kind_chooses_the_variant_and_drops_the_defaults_of_the_other(path):
    run = load(Run, path, ["data.num_frames=7", "data.kind=synthetic"])
    assert run.data == Synthetic(num_frames=7)


def test_override_beats_the_file(path):
    path.write_text("name: a\nvehicle:\n  speed: 3\nfleet:\n- speed: 1\n- speed: 2\n")
    run = load(Run, path, ["vehicle.speed=4", "fleet.1.speed=9", "fleet.0={num_delay_steps: 2}"])
    assert run.vehicle == Vehicle(speed=4.0)
    assert run.fleet == (Vehicle(num_delay_steps=2), Vehicle(speed=9.0))


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("horizons=[1, 2, 3]", "horizons", (1, 2, 3)),
        ("horizons.1=4", "horizons", (5, 4)),
        ("fleet.1.num_delay_steps=2", "fleet", (Vehicle(), Vehicle(speed=5.0, num_delay_steps=2))),
        ("fleet=[]", "fleet", ()),
        ("bits=null", "bits", None),
        ("bits=", "bits", None),
        ("bits=.inf", "bits", float("inf")),
        ("bits=300", "bits", 300.0),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("learning_rate=-.5E+2", "learning_rate", -50.0),
        ("name=off", "name", "off"),
        ("name=a=b", "name", "a=b"),
        ("is_fast=true", "is_fast", True),
        ("fallback={num_frames: 2}", "fallback", Synthetic(num_frames=2)),
        ("fallback.num_frames=2", "fallback", Synthetic(num_frames=2)),
        ("fallback=null", "fallback", None),
        ("vehicle.gain=[1, 2]", "vehicle", Vehicle(speed=12.0, gain=(1.0, 2.0))),
        ("vehicle=null", "vehicle", Vehicle(speed=12.0)),
        ("weights={plan: 2}", "weights", {"plan": 2.0}),
        ("weights.plan=2", "weights", {"plan": 2.0}),
    ],
)
def test_override(path, override, name, expected):
    assert getattr(load(Run, path, [override]), name) == expected


@dataclass(frozen=True, kw_only=True)
class Paths:
    data: str = "sample"
    file: Path | None = None
    files: tuple[Path, ...] = ()
    named: dict[str, Path] = field(default_factory=dict)
    there: str = "~/drive"


def test_a_path_may_begin_with_ones_home(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path.write_text("data: ~/x\nfile: ~/y.parquet\nfiles: [~/a, b~/c]\nnamed: {n: '~'}\n")
    run = load(Paths, path, ["there=~/z"])
    assert run == Paths(
        data="/home/me/x",
        file=Path("/home/me/y.parquet"),
        files=(Path("/home/me/a"), Path("b~/c")),
        named={"n": Path("/home/me")},
        there="~/z",  # a folder on another machine
    )
    assert load(Paths, path, ["data='~'"]).data == "~"
    with pytest.raises(ConfigError, match=r"^command line: file is '~nobody-here/x': .*home"):
        load(Paths, path, ["file=~nobody-here/x"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vehicle.sped=1", "unknown key 'vehicle.sped'; did you mean 'speed'?"),
        ("zzz=1", "unknown key 'zzz'; known keys are name, vehicle, data"),
        ("data.num_frames=1", "unknown key 'data.num_frames'; known keys are kind, path, split"),
        ("fleet.1.sped=1", "unknown key 'fleet.1.sped'; did you mean 'speed'?"),
        ("vehicle.speed=fast", "vehicle.speed should be a number, got 'fast'"),
        ("vehicle.speed=true", "vehicle.speed should be a number, got True"),
        ("vehicle.speed='5'", "vehicle.speed should be a number, got '5'"),
        ("vehicle.num_delay_steps=1.5", "vehicle.num_delay_steps should be a whole number"),
        ("vehicle.num_delay_steps=-1", "vehicle: num_delay_steps must be 0 or more, got -1"),
        ("vehicle.gain=[1]", r"vehicle.gain should be a list of 2 \(a number, a number\)"),
        ("vehicle=3", "vehicle should hold keys of its own, got 3"),
        ("horizons=5", "horizons should be a list, each a whole number, got 5"),
        ("horizons.7=5", "horizons should be a list, each a whole number"),
        ("fleet=5", "fleet should be a list, got 5"),
        ("fleet.2.speed=5", "fleet has 2 items, counted from 0; there is no '2'"),
        (
            "data.kind=recoded",
            "data.kind should be 'recorded' or 'synthetic', got 'recoded'; did you mean",
        ),
        ("data.split=held-out", "data.split should be 'train' or 'held_out' or null.*did you mean"),
        ("fallback=5", "fallback should be Synthetic or null, got 5"),
        ("name=5", "name should be text, got 5"),
        ("name.first=5", "name is 'a', it has no key 'first'"),
        ("name", "'name' is not of the form dotted.key=value"),
        ("vehicle..speed=1", "not of the form dotted.key=value"),
        ("horizons=[1", "horizons: not valid YAML, line 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused_by_name(path, override, message):
    with pytest.raises(ConfigError, match=f"^command line: .*{message}") as error:
        load(Run, path, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nvehicle:\n  sped: 1\n", "unknown key 'vehicle.sped'; did you mean"),
        ("name: a\n1: 2\n", "unknown key '1'"),
        ("name: a\nfleet:\n- speed: x\n", "fleet.0.speed should be a number, got 'x'"),
        ("vehicle: {}\n", "name is missing, it should be text"),
        ("name: a\n\nname: b\n", "not valid YAML, line 3: key 'name' is given twice"),
        ("name: [\n", "not valid YAML, line 2"),
        ("name: \x00\n", "not valid YAML"),
        ("- 1\n", r"must hold `key: value` lines, holds \[1\]"),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_the_files_name(path, text, message):
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(Run, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_error_tells_file_and_command_line_apart(path):
    path.write_text("name: a\nvehicle:\n  speed: fast\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: vehicle\.speed"):
        load(Run, path, ["vehicle.num_delay_steps=2"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        load(Run, tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Run, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        load(Run, tmp_path / "binary.yaml")


def test_an_empty_file_is_all_defaults(path):
    path.write_text("# nothing\n")
    assert load(Vehicle, path) == Vehicle()
