"""Where numbers go beside metrics.jsonl: TensorBoard always, W&B and MLflow when asked for.

A sink is built for a run's directory and the step that training starts from, gets flat mappings
from names to numbers, and is closed at the end.
"""

import importlib.util
import json
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
    """Weights & Biases. The run's id is the directory's name, so that a resumed run goes on in the
    same curve; `step` is a metric of its own, so that it may repeat after a resume."""

    def __init__(self, folder: Path, start: int) -> None:
        import wandb

        config = json.loads((folder / "config.json").read_text())
        project = config["name"]
        self._run = wandb.init(project=project, id=f"{project}-{folder.name}", resume="allow",
                               dir=str(folder), config=config)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow's tracking server or folder, as its environment variables say."""

    def __init__(self, folder: Path, start: int) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(json.loads((folder / "config.json").read_text())["name"])
        kept = folder / "mlflow_run_id"
        run = mlflow.start_run(run_id=kept.read_text() if kept.exists() else None,
                               run_name=folder.name)
        kept.write_text(run.info.run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


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
