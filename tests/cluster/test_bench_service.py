import json

import pytest

from cluster.bench_service import ServiceBench, bench_service
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModelConfig
from world_model.engine import EngineConfig
from world_model.sampler import SamplerConfig
from world_model.service_config import ServiceConfig


@pytest.mark.slow
def test_the_service_is_measured_beside_the_model(tmp_path):
    config = ServiceBench(
        model=WorldModelConfig(size="femto", width=32, height=16, latent_channels=4, num_history=3),
        tokenizer=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1),
        service=ServiceConfig(
            sampler=SamplerConfig(num_steps=1), engine=EngineConfig(capacity=8), num_cpus=0.5
        ),
        num_sessions=(1, 2),
        num_replicas=(1,),
        headline=2,
        scenes=2,
        num_frames=2,
        num_repeats=1,
    )
    figures = bench_service(config, tmp_path)
    rates = figures["frames_per_second"]
    assert set(rates) == {"in process", "1 replica"}
    assert figures["service_over_in_process"] == pytest.approx(
        rates["1 replica"]["2"] / rates["in process"]["2"], rel=0.05
    )
    assert all(cost > 0 for cost in figures["overhead_ms"].values())
    assert (tmp_path / "service.png").stat().st_size > 1000
    json.dumps(figures)


def test_more_sessions_than_there_is_room_for():
    with pytest.raises(ValueError, match=r"raise service.service.engine.capacity"):
        ServiceBench(num_sessions=(8, 100))
