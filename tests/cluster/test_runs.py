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


@pytest.mark.parametrize("run", JOBS["sweep-world-model"].runs)
def test_sweeps_of_the_world_model_learn_from_the_latents_that_nano_leaves(run):
    """What has been encoded for one would be refused by the others: half an hour each."""
    nano = resolve("train-world-model", RUNS / "nano.yaml", []).config
    training = resolve("sweep-world-model", RUNS / f"{run}.yaml", []).config.training
    for name in ("data", "num_segments", "encoding", "tokenizer", "latents"):
        assert getattr(training, name) == getattr(nano, name), name
