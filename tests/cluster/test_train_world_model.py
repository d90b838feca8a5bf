"""From recordings to a tokenizer and a world model, small, through the real jobs."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster import evaluate_world_model, train_tokenizer, train_world_model
from cluster.config import dump
from cluster.evaluate_world_model import EvaluateWorldModelRun, headline_names
from cluster.train_policy import RayConfig
from cluster.train_tokenizer import TrainTokenizerRun
from cluster.train_world_model import TrainWorldModelRun, check_checkpoint, check_start
from drive_envs.checkpoint import Checkpoint, latest_checkpoint
from drive_envs.image_metrics import psnr
from drive_envs.segments import write_segments
from drive_learner.local_cluster import local_cluster
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.evaluation import EvaluationConfig
from world_model.latents import LatentsError
from world_model.model_file import load_world_model, save_world_model
from world_model.objective import ObjectiveConfig
from world_model.optimizer import OptimizerConfig
from world_model.own_rollouts import OwnRolloutsConfig
from world_model.pose_net import PoseNetConfig
from world_model.sampler import SamplerConfig
from world_model.tokenizer import Tokenizer, load_tokenizer
from world_model.train import WorkersConfig
from world_model.trainer import TrainerConfig
from world_model.windows import WindowConfig

WIDTH, HEIGHT = 32, 16


@pytest.fixture(scope="module")
def recordings(synthetic, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "drives.parquet"
    roads = [synthetic.winding_path(num_rows=52), synthetic.arc_path(num_rows=52)]
    write_segments(
        path,
        [
            synthetic.segment_from_path(
                road, name=f"{split}-{n}", width=WIDTH, height=HEIGHT, split=split
            )
            for split in ("train", "held_out")
            for n, road in enumerate(roads)
        ],
    )
    return path


@pytest.fixture(scope="module")
def tokenizer_run(recordings):
    return TrainTokenizerRun(
        data=str(recordings),
        width=WIDTH,
        height=HEIGHT,
        frames_per_segment=6,
        num_steps=40,
        batch_size=4,
        precision="fp32",
        checkpoint_every=15,
        autoencoder=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1),
        optimizer=OptimizerConfig(learning_rate=4e-3, num_warmup_steps=2, average_decay=0.9),
    )


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokenizer")
    figures = train_tokenizer.run(tokenizer_run, output)
    (output / "figures.json").write_text(json.dumps(figures))
    return output


@pytest.fixture(scope="module")
def world_model_run(recordings, tokenizer_folder, tmp_path_factory):
    return TrainWorldModelRun(
        data=str(recordings),
        tokenizer=tokenizer_folder / "tokenizer",
        latents=tmp_path_factory.mktemp("latents") / "drives.parquet",
        log_every=2,
        checkpoint_every=4,
        preview_every=8,
        model=WorldModelConfig(
            size="femto", width=WIDTH, height=HEIGHT, latent_channels=4, num_history=3
        ),
        trainer=TrainerConfig(
            num_steps=8,
            batch_size=4,
            precision="fp32",
            objective=ObjectiveConfig(num_targets=3),
            windows=WindowConfig(max_wait=8),
        ),
        sampler=SamplerConfig(num_steps=2, precision="fp32"),
        pose_net=PoseNetConfig(num_pairs=64, num_steps=20, batch_size=8),
        workers=WorkersConfig(num_threads=1),
        ray=RayConfig(num_cpus=2, object_store_mb=100),
    )


def test_a_tokenizer_is_left_with_its_errors_and_a_picture(tokenizer_folder):
    figures = json.loads((tokenizer_folder / "figures.json").read_text())
    assert figures["autoencoder_psnr"] > 12
    assert "autoencoder_lpips" not in figures  # there were no weights for it
    with Image.open(tokenizer_folder / "reconstructions.png") as sheet:
        above, below = np.split(np.asarray(sheet), 2)
    pair = torch.from_numpy(np.stack([above, below])).permute(0, 3, 1, 2)
    assert psnr(pair[:1], pair[1:]).item() > 12
    assert load_tokenizer(tokenizer_folder / "tokenizer").latent_channels == 4


def test_a_tokenizer_run_goes_on_where_it_stopped(tokenizer_run, tokenizer_folder, tmp_path):
    """In one go, or stopped after 15 steps: the same weights."""
    steps = []
    write = train_tokenizer.write_checkpoint

    def write_and_stop(folder, checkpoint, **options):
        steps.append(checkpoint.step)
        write(folder, checkpoint, **options)
        if len(steps) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tokenizer, "write_checkpoint", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer.run(tokenizer_run, tmp_path)
        train_tokenizer.run(tokenizer_run, tmp_path)
    assert steps == [15, 30, 40]
    whole, resumed = (
        load_tokenizer(folder / "tokenizer").state_dict() for folder in (tokenizer_folder, tmp_path)
    )
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name])


def test_a_tokenizer_of_other_settings_is_not_gone_on_with(tokenizer_run, tokenizer_folder):
    train_tokenizer.check_checkpoint(tokenizer_run, tokenizer_folder)
    longer = replace(tokenizer_run, num_steps=80, batch_size=2)
    train_tokenizer.check_checkpoint(longer, tokenizer_folder)
    changed = replace(tokenizer_run, seed=1, loss=replace(tokenizer_run.loss, kl=0.5))
    with pytest.raises(ValueError, match=r"run with other settings \(seed, loss\)"):
        train_tokenizer.run(changed, tokenizer_folder)


def test_recordings_are_found_from_anywhere():
    run = TrainWorldModelRun(data="drives", tokenizer=Path("tokenizer"))
    told = run.for_encoders
    assert (told.data, told.tokenizer) == (str(Path.cwd() / "drives"), Path.cwd() / "tokenizer")
    assert TrainWorldModelRun().for_encoders.data == "sample"  # each machine has its own


@pytest.fixture(scope="module")
def trained(world_model_run, tmp_path_factory):
    """The folder of a whole run, which has started and stopped a Ray of its own."""
    output = tmp_path_factory.mktemp("whole")
    figures = train_world_model.run(world_model_run, output)
    (output / "figures.json").write_text(json.dumps(figures))
    return output


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all the runs that follow."""
    with (
        local_cluster(num_cpus=2, object_store_mb=100),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(train_world_model, "local_cluster", lambda **options: nullcontext())
        yield


@pytest.mark.slow
def test_a_world_model_is_left_with_figures_and_films(trained, world_model_run):
    assert json.loads((trained / "figures.json").read_text())["steps"] == 8
    model, tokenizer = load_world_model(trained / "world_model")
    assert model.config == world_model_run.model
    assert tokenizer.latent_channels == 4
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    shown = set(events.Tags()["scalars"])
    assert {"loss/flow", "loss/plan", "held_out/flow", "speed/windows_per_second"} <= shown
    assert any(name.startswith("loss/flow_at_") for name in shown)
    assert (trained / "videos" / "step_000008.mp4").stat().st_size > 0
    # What it has learnt is known with its checkpoint.
    checkpoint = latest_checkpoint(trained / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["tokenizer"] == tokenizer.digest
    # Nothing is left to do, and no Ray is started for it.
    assert "loss/flow" not in train_world_model.run(world_model_run, trained)


@pytest.mark.slow
def test_a_world_model_begins_with_the_weights_of_another(
    trained, world_model_run, cluster, tmp_path
):
    start = trained / "world_model"
    still = replace(
        world_model_run.trainer, num_steps=1, optimizer=OptimizerConfig(learning_rate=1e-9)
    )
    run = replace(world_model_run, start=start, trainer=still, preview_every=0)
    train_world_model.run(run, tmp_path)
    before, after = (load_world_model(at)[0] for at in (start, tmp_path / "world_model"))
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0.0, msg=name)


def test_a_start_with_another_network_or_tokenizer_is_refused(tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    one, other = Tokenizer(config), Tokenizer(config)
    shape = WorldModelConfig(
        size="femto", width=WIDTH, height=HEIGHT, latent_channels=4, num_history=3
    )
    save_world_model(WorldModel(shape), one, tmp_path)
    run = TrainWorldModelRun(start=tmp_path, model=shape)
    one = load_tokenizer(tmp_path)
    check_start(run, one)
    with pytest.raises(ValueError, match=f"say tokenizer={tmp_path}"):
        check_start(run, other)
    with pytest.raises(ValueError, match="is a model of"):
        check_start(replace(run, model=replace(shape, num_history=4)), one)


def test_what_has_learnt_other_latents_is_not_gone_on_with(tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    one, other = Tokenizer(config), Tokenizer(config)
    run = TrainWorldModelRun()
    check_checkpoint(None, one, run, tmp_path)  # nothing there
    begun = Checkpoint(step=1, tensors={}, state={"tokenizer": one.digest}, run=dump(run))
    check_checkpoint(begun, one, run, tmp_path)
    longer = replace(run, trainer=replace(run.trainer, num_steps=7), cache_mb=5)
    check_checkpoint(begun, one, longer, tmp_path)
    with pytest.raises(ValueError, match="another tokenizer: choose another output"):
        check_checkpoint(begun, other, run, tmp_path)
    changed = replace(run, data="mine", model=replace(run.model, plans_from="arc"))
    with pytest.raises(ValueError, match=r"run with other settings \(data, model\)"):
        check_checkpoint(begun, one, changed, tmp_path)


@pytest.mark.slow
def test_a_world_model_is_evaluated(trained, world_model_run, tmp_path):
    evaluate(trained / "world_model", world_model_run.data, tmp_path / "report")


def evaluate(model, data, output):
    """What the next job makes of it: figures, a report that names all, plots and films."""
    output.mkdir()
    run = EvaluateWorldModelRun(
        model=model,
        data=data,
        metadrive_scenes=0,
        evaluation=EvaluationConfig(num_frames=8, report_frames=(4, 8), num_scenes=3),
        sampler=SamplerConfig(num_steps=2, precision="fp32"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_world_model, "lpips_or_none", lambda weights: None)
        figures = evaluate_world_model.run(run, output)
    assert tuple(figures) == headline_names(run.evaluation)
    assert figures["pose_net_error_m"] > 0
    assert figures["autoencoder_lpips"] is None
    assert figures["sequential_lpips_8"] is None
    assert np.isfinite(figures["deviation_realised"])
    assert np.isfinite(figures["anchored_recovery_m"])
    page = (output / "report.html").read_text()
    for words in (
        "Commanded deviation",
        "unanchored",
        "still: PSNR",
        "deviation_+0.5_m.mp4",
        "rollout.mp4",
    ):
        assert words in page
    assert {file.name for file in output.iterdir()} == {
        "report.html",
        "images.png",
        "deviation.png",
        "rollout.mp4",
        *(f"deviation_{peak:+g}_m.mp4" for peak in (0.5, -0.5, 1.0, -1.0)),
    }


@pytest.mark.slow
def test_a_world_model_run_goes_on_where_it_stopped(trained, world_model_run, cluster, tmp_path):
    """Killed after half of the steps, and given again: the same weights."""
    output = tmp_path / "parts"
    shutil.copytree(trained, output)
    shutil.rmtree(output / "checkpoints" / "step_000008")
    run = replace(world_model_run, preview_every=0)
    train_world_model.run(run, output)
    whole, parts = (latest_checkpoint(place / "checkpoints") for place in (trained, output))
    assert whole is not None
    assert parts is not None
    assert whole.step == parts.step == 8
    for name, value in whole.tensors["raw"].items():
        assert torch.equal(value, parts.tensors["raw"][name])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_go_on_where_one_stopped(trained, world_model_run, cluster, tmp_path, sharding):
    """The same minibatches, weights copied or split, also for their own rollouts; left whole."""
    output = tmp_path / "two"
    shutil.copytree(trained, output)
    shutil.rmtree(output / "checkpoints" / "step_000008")
    run = replace(
        world_model_run,
        preview_every=0,
        trainer=replace(
            world_model_run.trainer,
            sharding=sharding,
            own_rollouts=OwnRolloutsConfig(share=0.5, num_frames=3, num_scenes=2, first_step=4),
        ),
        workers=replace(world_model_run.workers, num_workers=2),
    )
    figures = train_world_model.run(run, output)
    load_world_model(output / "world_model")
    assert figures["loss/flow"] < 2.5
    one, two = (latest_checkpoint(place / "checkpoints") for place in (trained, output))
    assert one is not None
    assert two is not None
    # Noise is drawn by process, so that weights are alike, not the same.
    for name, value in one.tensors["raw"].items():
        torch.testing.assert_close(value, two.tensors["raw"][name], atol=0.02, rtol=0.5)


@pytest.mark.slow
def test_latents_of_another_tokenizer_are_refused(world_model_run, cluster, tmp_path):
    latents = tmp_path / "latents.parquet"
    run = replace(world_model_run, latents=latents)
    tokenizer = load_tokenizer(run.tokenizer)
    train_world_model.encode(run, tokenizer)
    train_world_model.check_latents(run, tokenizer)
    other = replace(run, encoding=replace(run.encoding, num_excursions=2))
    with pytest.raises(LatentsError, match=r"made with another num_variants \(2, not 3\)"):
        train_world_model.check_latents(other, tokenizer)
    with pytest.raises(ValueError, match="say model"):
        train_world_model.check_tokenizer(
            replace(run, model=replace(run.model, latent_channels=8)), tokenizer
        )


@pytest.mark.slow
def test_latents_for_a_model_that_is_not_told_the_road_do_not_serve_one_that_is(
    world_model_run, cluster, tmp_path
):
    told = replace(world_model_run, latents=tmp_path / "latents.parquet")
    untold = replace(told, model=replace(told.model, flat_road=False))
    tokenizer = load_tokenizer(told.tokenizer)
    train_world_model.encode(untold, tokenizer)
    train_world_model.check_latents(untold, tokenizer)
    with pytest.raises(LatentsError, match=r"made for model\.flat_road=false"):
        train_world_model.check_latents(told, tokenizer)
    told.latents.unlink()
    train_world_model.encode(told, tokenizer)
    train_world_model.check_latents(untold, tokenizer)
