from dataclasses import replace

import pytest

from cluster import sweep_bottleneck, sweep_world_model
from cluster.kept import claim
from cluster.sweep_world_model import SweepWorldModelRun, draw_law, fitted, points, power_law, run

VARIANTS = {"small": ("model.size=femto",), "large": ("model.size=nano",)}


def found(parameters, lpips):
    return {
        "parameters": 2 * parameters,
        "denoiser_parameters": parameters,
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
        return found({"femto": 1000, "nano": 16000}[training.model.size], None)

    def evaluate(report, output):
        lpips = {"small": 0.5, "large": 0.2}[report.model.parent.name]
        return {"autoencoder_lpips": 0.1, "sequential_lpips_25": lpips}

    monkeypatch.setattr(sweep_world_model.train_world_model, "run", train)
    monkeypatch.setattr(sweep_world_model.evaluate_world_model, "run", evaluate)
    monkeypatch.setattr(sweep_world_model, "num_drives", lambda training: 4)
    monkeypatch.setattr(sweep_world_model, "load_perceptual", lambda weights: {"alex": weights})
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


def test_a_policy_is_trained_inside_each_variant(tmp_path, done, monkeypatch):
    driven = []

    def train(training, folder):
        driven.append((training.service.model, training.num_steps, folder))
        return {"seconds": 1.0, "trajectory_mae": 0.25}

    def score(scoring, pages):
        assert scoring.policy == str(pages.parent)
        return {"lane_centering": {"passed": 7, "total": 24}, "mean_abs_lateral": 0.5}

    monkeypatch.setattr(sweep_bottleneck.train_policy, "run", train)
    monkeypatch.setattr(sweep_bottleneck.evaluate_policy, "run", score)
    config = SweepWorldModelRun(variants=VARIANTS, policy=("world_model", "num_steps=7"))
    result = run(config, tmp_path)
    assert result["policies"] == {"small": "7 of 24", "large": "7 of 24"}
    assert run(config, tmp_path) == result
    assert driven == [
        (tmp_path / name / "world_model", 7, tmp_path / name / "policy") for name in VARIANTS
    ]
    assert "7 of 24" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("policy", [("reprojective",), ("world_model", "service_name=theirs")])
def test_a_policy_that_is_trained_elsewhere_is_refused(tmp_path, done, policy):
    with pytest.raises(ValueError, match=r"policy=\[world_model, \.\.\.\]"):
        run(SweepWorldModelRun(variants=VARIANTS, policy=policy), tmp_path)
    assert not done


def test_a_variant_with_other_settings_is_not_taken_for_the_old_one(tmp_path, done):
    config = SweepWorldModelRun(variants=VARIANTS)
    run(config, tmp_path)
    run(replace(config, report=replace(config.report, metadrive_scenes=1)), tmp_path)
    assert done == ["small", "large"] * 2
    longer = replace(config, training=replace(config.training, cache_mb=1))
    with pytest.raises(ValueError, match="training with other settings"):
        run(longer, tmp_path)


def test_without_lpips_nothing_is_trained_for_it(tmp_path, done, monkeypatch):
    monkeypatch.setattr(sweep_world_model, "load_perceptual", lambda weights: {})
    config = SweepWorldModelRun(variants=VARIANTS, against="parameters")
    with pytest.raises(ValueError, match=r"report\.lpips_weights=FOLDER"):
        run(config, tmp_path)
    with pytest.raises(ValueError, match="'sequential_lpips_24', not one of"):
        run(replace(config, metric="sequential_lpips_24"), tmp_path)
    assert not done
    run(replace(config, metric="deviation_realised", against="none"), tmp_path)
    assert done == ["small", "large"]


def test_without_figures_there_is_no_law():
    figures = {"small": found(1000, None), "large": found(2000, None)}
    assert fitted(SweepWorldModelRun(variants=VARIANTS, against="parameters"), figures) == {}


def test_a_law_is_drawn_of_the_variants_it_is_fitted_to():
    figures = {
        "small": found(1000, 0.5),
        "unknown": found(4000, None),
        "large": found(16000, 0.2),
    }
    config = SweepWorldModelRun(variants=VARIANTS, against="parameters")
    assert points(config, figures) == {
        "small": (1000, pytest.approx(0.4)),
        "large": (16000, pytest.approx(0.1)),
    }
    law = fitted(config, figures)
    assert law["b"] == pytest.approx(0.5)
    assert draw_law(config, figures, law).startswith(b"\x89PNG")


@pytest.mark.parametrize("metric", ["deviation_realised", "autoencoder_lpips"])
def test_a_law_of_what_is_no_lpips_above_the_floor_is_refused(tmp_path, done, metric):
    config = SweepWorldModelRun(variants=VARIANTS, against="drives", metric=metric)
    with pytest.raises(ValueError, match="say metric=sequential_lpips_N, or against=none"):
        run(config, tmp_path)
    assert not done


def test_folders_of_other_trainings_are_refused_before_anything_is_trained(tmp_path, done):
    other = SweepWorldModelRun(variants={"large": ("model.size=micro",)})
    claim(tmp_path / "large", replace(other.training, cache_mb=1))
    with pytest.raises(ValueError, match="training with other settings"):
        run(SweepWorldModelRun(variants=VARIANTS), tmp_path)
    assert not done


def test_a_wrong_override_is_said_before_anything_is_trained(tmp_path):
    from cluster.config import ConfigError

    variants = {"good": (), "bad": ("model.sise=nano",)}
    with pytest.raises(ConfigError, match="sise"):
        run(SweepWorldModelRun(variants=variants), tmp_path)
    assert not (tmp_path / "good").exists()
