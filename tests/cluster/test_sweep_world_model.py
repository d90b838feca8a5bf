from dataclasses import replace

import pytest

from cluster import sweep_world_model
from cluster.sweep_world_model import SweepWorldModelRun, power_law, run

VARIANTS = {"small": ("model.size=femto",), "large": ("model.size=nano",)}


def found(parameters, lpips):
    return {
        "parameters": parameters,
        "drives": 4,
        "seconds": 60.0,
        "autoencoder_lpips": 0.1,
        "sequential_lpips_25": lpips,
    }


def test_a_power_law_is_found_again():
    x = [1e5, 1e6, 1e7, 1e8]
    law = power_law(x, [3.0 * each**-0.4 for each in x])
    assert law == pytest.approx({"a": 3.0, "b": 0.4, "r2": 1.0}, rel=1e-6)


@pytest.fixture
def done(monkeypatch):
    """Stand in for training and evaluating, and return what was trained."""
    trained = []

    def train(training, output):
        trained.append(output.name)
        return {"parameters": {"femto": 1000, "nano": 16000}[training.model.size], "seconds": 60.0}

    def evaluate(report, output):
        lpips = {"small": 0.5, "large": 0.2}[report.model.parent.name]
        return {"autoencoder_lpips": 0.1, "sequential_lpips_25": lpips}

    monkeypatch.setattr(sweep_world_model.train_world_model, "run", train)
    monkeypatch.setattr(sweep_world_model.evaluate_world_model, "run", evaluate)
    monkeypatch.setattr(sweep_world_model, "num_drives", lambda training: 4)
    return trained


def test_variants_that_were_evaluated_are_not_trained_again(tmp_path, done):
    config = SweepWorldModelRun(variants=VARIANTS, against="parameters")
    assert run(config, tmp_path) == (result := run(config, tmp_path))
    assert done == ["small", "large"]
    assert (result["small"], result["large"]) == (0.5, 0.2)
    assert result["power_law"]["b"] == pytest.approx(0.5)
    page = (tmp_path / "report.html").read_text()
    assert "model.size=femto" in page
    assert "x^-0.500" in page
    assert (tmp_path / "power_law.png").stat().st_size > 0


def test_a_variant_with_other_settings_is_not_taken_for_the_old_one(tmp_path, done):
    config = SweepWorldModelRun(variants=VARIANTS)
    run(config, tmp_path)
    run(replace(config, report=replace(config.report, metadrive_scenes=1)), tmp_path)
    assert done == ["small", "large"] * 2
    longer = replace(config, training=replace(config.training, cache_mb=1))
    with pytest.raises(ValueError, match="training with other settings"):
        run(longer, tmp_path)


def test_without_lpips_there_is_no_law(tmp_path, monkeypatch):
    figures = found(1000, None) | {"autoencoder_lpips": None}
    monkeypatch.setattr(sweep_world_model, "figures_of", lambda *args: figures)
    assert "power_law" not in run(
        SweepWorldModelRun(variants=VARIANTS, against="parameters"), tmp_path
    )


def test_a_wrong_override_is_said_before_anything_is_trained(tmp_path):
    from cluster.config import ConfigError

    variants = {"good": (), "bad": ("model.sise=nano",)}
    with pytest.raises(ConfigError, match="sise"):
        run(SweepWorldModelRun(variants=variants), tmp_path)
    assert not (tmp_path / "good").exists()
