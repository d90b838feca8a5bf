"""The pages are read back with TensorBoard's own code, as its server does."""

import re
from operator import attrgetter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from cluster import train_policy, train_tokenizer, train_world_model
from cluster.config import load
from cluster.jobs import RUNS
from cluster.tensorboard_pages import DRIVING, LEARNING, Pages
from cluster.train_policy import TrainPolicyRun, run, tensorboard_pages
from cluster.train_tokenizer import TrainTokenizerRun
from cluster.train_world_model import TrainWorldModelRun


def charts_of(events):
    """Read the custom scalars page: the tags of each chart by its section and title."""
    (event,) = events.Tensors(CONFIG_SUMMARY_TAG)[-1:]
    layout = layout_pb2.Layout.FromString(  # pyright: ignore
        tensor_util.make_ndarray(event.tensor_proto).item()
    )
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def hparams_of(events):
    """Read the hparams page of one run: settings, compared figures, whether it has ended well."""
    found = {
        tag: HParamsPluginData.FromString(content)
        for tag, content in events.PluginTagToContent(metadata.PLUGIN_NAME).items()
    }
    started = found[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    settings = {name: value.string_value or value.number_value for name, value in started.items()}
    experiment = found[metadata.EXPERIMENT_TAG].experiment
    compared = [info.name.tag for info in experiment.metric_infos]
    assert {info.name for info in experiment.hparam_infos} == settings.keys()
    return settings, compared, metadata.SESSION_END_INFO_TAG in found


def test_a_run_is_described_before_it_has_ended(tmp_path):
    config = load(TrainPolicyRun, RUNS / "reprojective.yaml")
    pages = tensorboard_pages(config, tmp_path)
    settings, compared, has_ended = hparams_of(EventAccumulator(str(pages.folder)).Reload())
    assert settings["mode"] == "on_policy"
    assert settings["num_steps"] == config.num_steps
    assert settings["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert {"loss/plan", "result/trajectory_mae"} <= set(compared)
    assert not has_ended
    pages.end(config.num_steps, {"trajectory_mae": 0.5, "mode": "on_policy"})
    events = EventAccumulator(str(pages.folder)).Reload()
    assert hparams_of(events)[2]
    (result,) = events.Scalars("result/trajectory_mae")
    assert (result.step, result.value) == (config.num_steps, 0.5)


def test_pages_do_not_disturb_the_curves_of_a_run_that_is_resumed(tmp_path):
    for first, last in ((0, 4), (2, 6)):  # resumed from a checkpoint at step 2
        pages = Pages(tmp_path, None, LEARNING, settings=(), figures=("loss/plan",))
        with SummaryWriter(str(tmp_path), purge_step=first) as writer:
            for step in range(first, last):
                writer.add_scalar("loss/plan", first, step)
        pages.end(last, {})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/plan")] == [
        *((step, 0.0) for step in range(2)),
        *((step, 2.0) for step in range(2, 6)),
    ]


@pytest.mark.parametrize(
    ("job", "schema", "name"),
    [
        (train_policy, TrainPolicyRun, "reprojective"),
        (train_policy, TrainPolicyRun, "off_policy"),
        (train_world_model, TrainWorldModelRun, "nano"),
        (train_tokenizer, TrainTokenizerRun, "tokenizer"),
    ],
)
def test_every_setting_that_runs_are_compared_by_is_there(job, schema, name):
    config = load(schema, RUNS / f"{name}.yaml")
    for setting in job.SETTINGS:
        attrgetter(setting)(config)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_draws_a_curve_in_every_chart(tiny, recordings, tmp_path):
    config = load(
        TrainPolicyRun,
        RUNS / "reprojective_demo.yaml",
        [*tiny, f"data={recordings}", "num_steps=6", "loop.log_every=2"],
    )
    figures = run(config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    charts = charts_of(events)
    assert list(charts) == ["losses", "learner", "rollout", "actor", "queue"]
    drawn = events.Tags()["scalars"]
    empty = {
        title
        for section in charts.values()
        for title, patterns in section.items()
        if not any(re.fullmatch(pattern, tag) for tag in drawn for pattern in patterns)
    }
    # What was discarded is the one thing that need not happen.
    assert empty <= {"discarded, by cause"}
    assert charts.keys() == {**LEARNING, **DRIVING}.keys()
    settings, compared, has_ended = hparams_of(events)
    assert settings["num_steps"] == 6
    assert has_ended
    assert set(compared) <= set(drawn)
    assert events.Scalars("result/trajectory_mae")[-1].value == pytest.approx(
        figures["trajectory_mae"]
    )
