"""What TensorBoard shows of a training beside single curves: the custom scalars and hparams pages.

The custom scalars page draws together what is to be read together. The hparams page has a row for
each run, with its main settings and its final figures. Both are event files of their own beside
the training's, which knows nothing of them. Settings are named by the dotted keys of the YAML.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

Layout = Mapping[str, Mapping[str, Sequence[str]]]
"""Charts by page section and title, each with the figures in it, as regular expressions."""

RESULT = "result/"  # the area of a job's figures

LEARNING: Layout = {
    "losses": {
        "imitation": ["loss/plan", "loss/action"],
        "reinforcement": ["loss/policy_gradient", "loss/value", "loss/entropy"],
        "error of the action": ["policy/.*_action_error", "first_use/.*_action_error"],
        "value, of what was learnt from before and not": ["loss/value", "first_use/value"],
    },
    "learner": {
        "gradient steps a second": ["learner/steps_per_second"],
        "share of time without data": ["learner/idle_share"],
        "policy lag, gradient steps": ["learner/policy_lag", "learner/max_policy_lag"],
        "importance ratio and clipped share": ["vtrace/importance_ratio", "vtrace/clipped_share"],
        "gradient norm": ["learner/gradient_norm"],
    },
}

DRIVING: Layout = {
    "rollout": {
        "metres off the path": ["rollout/lateral_error"],
        "return of a scene": ["rollout/return"],
        "scenes that ended early": ["rollout/terminated_share"],
    },
    "actor": {
        "utilisation": ["actor/utilisation"],
        "where the time goes": ["actor/share_.*"],
        "frames a second, all actors": ["actor/frames_per_second"],
        "alive and restarted": ["actor/alive", "actor/restarts"],
    },
    "queue": {
        "rollouts": ["queue/rollouts", "queue/in_flight"],
        "minibatches": ["queue/minibatches"],
        "fate of the rollouts": ["rollouts/started", "rollouts/learnt"],
        "discarded, by cause": ["discarded/.*"],
    },
}

WORLD_MODEL: Layout = {
    "losses": {
        "flow": ["loss/flow", "held_out/flow"],
        "plan": ["loss/plan", "held_out/plan"],
        "flow by noise level": ["held_out/flow_at_.*"],
    },
    "learner": {
        "windows a second": ["speed/windows_per_second"],
        "share of time spent loading": ["speed/loading_share"],
        "gradient norm": ["optimizer/gradient_norm"],
    },
}

TOKENIZER: Layout = {
    "losses": {"images": ["loss/l1", "loss/lpips"], "latents": ["loss/kl"]},
    "learner": {"gradient norm": ["optimizer/gradient_norm"]},
}


class Pages:
    """The pages of one run, in the folder of its event files.

    settings: dotted keys of `config`. figures: the curves whose last values are compared. results:
    figures of the job, known at its end.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        layout: Layout,
        *,
        settings: Sequence[str],
        figures: Sequence[str],
        results: Sequence[str] = (),
    ) -> None:
        self.folder, self.results = folder, results
        compared = [*figures, *(RESULT + name for name in results)]
        values = {name: plain_setting(attrgetter(name)(config)) for name in settings}
        experiment, start, self._end = hparams(values, dict.fromkeys(compared, 0.0))
        charts = {
            section: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
            for section, charts in layout.items()
        }
        with SummaryWriter(str(folder)) as writer:
            writer.add_custom_scalars(charts)
            writer._get_file_writer().add_summary(experiment)
            writer._get_file_writer().add_summary(start)

    def end(self, step: int, figures: Mapping[str, Any]) -> None:
        """Say that the run has ended well, with the job's figures.

        The training's own writer is closed by then.
        """
        with SummaryWriter(str(self.folder)) as writer:
            for name in self.results:
                if isinstance(value := figures.get(name), int | float):
                    writer.add_scalar(RESULT + name, value, step)
            writer._get_file_writer().add_summary(self._end)


def plain_setting(value: Any) -> bool | float | str:
    """Return a setting as the hparams page holds it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
