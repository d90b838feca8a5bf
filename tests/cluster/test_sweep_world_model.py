import json

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


def test_variants_that_were_evaluated_are_not_trained_again(tmp_path):
    for name, figures in (("small", found(1000, 0.5)), ("large", found(16000, 0.2))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "figures.json").write_text(json.dumps(figures))
    result = run(SweepWorldModelRun(variants=VARIANTS, against="parameters"), tmp_path)
    assert (result["small"], result["large"]) == (0.5, 0.2)
    assert result["power_law"]["b"] == pytest.approx(0.5)
    page = (tmp_path / "report.html").read_text()
    assert "model.size=femto" in page
    assert "x^-0.500" in page
    assert (tmp_path / "power_law.png").stat().st_size > 0


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
