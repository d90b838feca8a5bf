import json

import pytest
import torch

from cluster.bench_world_model import (
    WorldModelBench,
    bench_world_model,
    flops_of_frame,
    uncached_frame,
)
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.sampler import Anchors, Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer
from world_model.trainer import expecting_flops

MODEL = WorldModelConfig(size="femto", width=32, height=16, latent_channels=4, num_history=3)


def test_rates_and_shares(tmp_path):
    config = WorldModelBench(
        model=MODEL,
        tokenizer=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1),
        sampler=SamplerConfig(num_steps=2),
        batch_sizes=(1, 2),
        num_frames=1,
        num_repeats=2,
    )
    figures = bench_world_model(config, tmp_path)
    assert set(figures["frames_per_second"]) == {"1", "2"}
    for rates in figures["frames_per_second"].values():
        assert set(rates) == {"cached", "uncached", "decode"}
        assert min(rates.values()) > 0
    for batch, ratio in figures["cached_over_uncached"].items():
        rates = figures["frames_per_second"][batch]
        assert ratio == pytest.approx(rates["cached"] / rates["uncached"], rel=0.05)
    assert 0 <= figures["share_of_bound"]["1"] < 1
    json.dumps(figures)


def test_guidance_costs_a_second_look_at_every_step():
    plain = WorldModelBench(model=MODEL, sampler=SamplerConfig(num_steps=4))
    guided = WorldModelBench(model=MODEL, sampler=SamplerConfig(num_steps=4, guidance=2.0))
    once = expecting_flops(MODEL)
    assert flops_of_frame(guided) - once == (flops_of_frame(plain) - once) * 9 // 5


def test_what_is_compared_is_the_same_frame():
    torch.manual_seed(0)
    model = WorldModel(MODEL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5)
    tokenizer = Tokenizer(AutoencoderConfig(latent_channels=MODEL.latent_channels)).eval()
    sampler = Sampler(model, tokenizer, SamplerConfig(num_steps=2, precision="fp32"))
    shape = MODEL.latent_shape
    context, noise = torch.randn(2, 4, *shape), torch.randn(2, *shape)
    poses = torch.zeros(2, 12, 3, dtype=torch.float64)
    poses[..., 0] = torch.arange(12)
    anchors = Anchors(torch.randn(2, 5, *shape), poses[:, 7:], torch.tensor([3, 3]))
    memory, _ = sampler.begin(context, poses[:, :4], anchors)
    cached = sampler.step(memory, poses[:, 4], noise).latent
    uncached = uncached_frame(sampler, context, poses[:, :5], anchors, noise)
    torch.testing.assert_close(cached, uncached, atol=1e-4, rtol=1e-4)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="batch_sizes"):
        WorldModelBench(batch_sizes=())
