import pytest

from cluster.config import dump, load
from cluster.jobs import JOBS, RUNS, resolve

SHIPPED = [(name, run) for name, job in JOBS.items() for run in job.runs]


@pytest.mark.parametrize(("name", "run"), SHIPPED)
def test_a_shipped_run_loads_and_can_be_written_down(name, run, tmp_path):
    resolved = resolve(name, RUNS / f"{run}.yaml", [])
    (tmp_path / "run.yaml").write_text(resolved.text)
    assert load(type(resolved.config), tmp_path / "run.yaml") == resolved.config
    assert dump(resolved.config) in resolved.text


def test_every_shipped_run_belongs_to_one_job():
    assert sorted(path.stem for path in RUNS.glob("*.yaml")) == sorted(run for _, run in SHIPPED)
