"""Photographs three times as large in each direction: 1 dB PSNR above bicubic interpolation.

    python launch.py --experiment=super_resolution
    python launch.py sweep --experiment=super_resolution

ESPCN of Shi et al. (2016), https://arxiv.org/abs/1609.05158, whose last kernel is added to the
interpolation, on the luma of eleven photographs. `test/psnr` is measured on squares of seven
others; it must pass `test/bicubic_psnr` beside it by 1 dB. The sweep adds SRCNN (Dong et al. 2014,
https://arxiv.org/abs/1501.00092), which has 32.75 dB for 30.39 by interpolation on the five
photographs of Set5 (table 2), after training on ImageNet. No paper has these photographs.
"""

from jaxdl.data.photographs import Photographs
from jaxdl.data.transforms import Flip
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.super_resolution import ESPCN, SRCNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.super_resolution import SuperResolution


def config() -> Experiment:
    return Experiment(
        task=SuperResolution(model=ESPCN(scale=3, channels=(64, 64, 32), kernels=(5, 3, 3, 3)),
                             scale=3, norm="l1"),
        data=Photographs(size=96, augment=(Flip(vertical=True),)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-3, warmup=0.02), clip=0.1),
        evals={"test": Evaluate(split="test", every=1_000, batch_size=32)},
        best=Best(metric="test/psnr"),
        steps=6_000, batch_size=16, log_every=100, save_every=500,
    )


def sweep() -> list[Trial]:
    return [{"task": SuperResolution(model=model, scale=3, norm="l1")} for model in (
        ESPCN(scale=3, channels=(64, 64, 32), kernels=(5, 3, 3, 3)), SRCNN(scale=3))]
