"""A small run that is kept: its checkpoints must be read by every later jaxdl."""

from jaxdl.data.digits import Digits
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(4,), batch_norm=True, dropout=0.2), ema=0.9),
        data=Digits(size=8, channels=1, augment=(PadCrop(pad=1),)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-2, warmup=0.1), weight_decay=1e-3, clip=1.0),
        evals={"test": Evaluate(every=4)}, best=Best(metric="test/accuracy"),
        steps=12, batch_size=64, log_every=3, save_every=4, keep=1, mesh=Mesh(data=1))
