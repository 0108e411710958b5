"""Where numbers go beside metrics.jsonl: TensorBoard always, W&B and MLflow when asked for.

A sink is built for a run's directory and the step that training starts from, gets flat mappings
from names to numbers, and is closed at the end.
"""

import importlib.util
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxdl.errors import UserError, nearest


class Sink(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard. What TensorBoard had after the restored step is superseded.

    Written here and now: tensorboardX's own SummaryWriter hands events to a thread, and waits for
    ever when that has died of a full disk.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        (folder / "tensorboard").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        if start:
            from tensorboardX.proto import event_pb2

            session: Any = event_pb2
            self._write(session.Event(step=start + 1, session_log=session.SessionLog(
                status=session.SessionLog.START)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        event: Any = event_pb2
        for name, value in values.items():
            self._write(event.Event(step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases. The run's id is kept in its directory, so that a resumed run goes on in the
    same curve; `step` is a metric of its own, so that it may repeat after a resume. A trial belongs
    to the group of its sweep; several may be open in one process."""

    def __init__(self, folder: Path, start: int) -> None:
        import wandb

        config = json.loads((folder / "config.json").read_text())
        project, kept = config["name"], folder / "wandb_run_id"
        if not kept.exists():
            kept.write_text(f"{folder.name}-{secrets.token_hex(4)}")
        trial = folder.absolute().parent.name == "trials"
        self._run = wandb.init(
            project=project, id=kept.read_text(), name=folder.name, resume="allow",
            group=folder.absolute().parents[1].name if trial else None, dir=str(folder),
            config=config, reinit="create_new")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow's tracking server or folder, as its environment variables say. Through its client:
    `mlflow.log_metrics` knows of one open run in a process, and a sweep has many."""

    def __init__(self, folder: Path, start: int) -> None:
        import mlflow

        experiment = mlflow.set_experiment(json.loads((folder / "config.json").read_text())["name"])
        self._client, kept = mlflow.MlflowClient(), folder / "mlflow_run_id"
        if not kept.exists():
            run = self._client.create_run(experiment.experiment_id, run_name=folder.name)
            kept.write_text(run.info.run_id)
        self._id = kept.read_text()
        self._client.update_run(self._id, "RUNNING")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1_000)
        self._client.log_batch(self._id, [Metric(k, v, now, step) for k, v in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


SINKS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def check(names: tuple[str, ...]) -> None:
    """Raises a UserError for a sink that does not exist, or is not installed."""
    for name in names:
        if name not in SINKS:
            raise UserError(f"--sinks={name}: expected {', '.join(SINKS)}.{nearest(name, SINKS)}")
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"--sinks={name} needs: pip install {name}")


def open_sinks(names: tuple[str, ...], folder: Path, start: int) -> list[Sink]:
    """The named sinks."""
    check(names)
    sinks: list[Sink] = []
    for name in names:
        try:
            sinks.append(SINKS[name](folder, start))
        except OSError:
            raise
        except Exception as error:  # Not logged in, no server: whatever it is, it is the sink's.
            raise UserError(f"--sinks={name}: {type(error).__name__}: "
                            f"{' '.join(str(error).split())}") from error
    return sinks
