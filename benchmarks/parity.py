"""The networks of jaxdl against those of torchvision and timm, with the same random weights.

    python benchmarks/parity.py --torch-python=ENV/bin/python [--models resnet50 vgg16]

ENV has torch, torchvision, timm and safetensors. The peer writes a network with random weights and
statistics, an input and its output; the weights are read with `jaxdl.weights`, as `init_from.path`
does, and the outputs compared. Written back out, they must be the file that was read, to the bit.
The exit status is 1 if an output differs by 1e-4 of the largest, in float32.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from jaxdl import compilation, conv, weights
from jaxdl.models.alexnet import AlexNet
from jaxdl.models.convnext import ConvNeXt
from jaxdl.models.densenet import DenseNet
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.models.mixer import Mixer
from jaxdl.models.mobilenet import MobileNetV2
from jaxdl.models.resnet import ResNet
from jaxdl.models.resnet_v2 import ResNetV2
from jaxdl.models.vgg import VGG
from jaxdl.models.vit import VisionTransformer
from jaxdl.task import named

BOUND = 1e-4
MODELS: dict[str, tuple[str, int, Any]] = {  # name there: (library, side of the images, ours)
    "alexnet": ("torchvision", 224, AlexNet(classes=1000)),
    "vgg11": ("torchvision", 224, VGG(depth=11, classes=1000)),
    "vgg16": ("torchvision", 224, VGG(depth=16, classes=1000)),
    "vgg16_bn": ("torchvision", 224, VGG(depth=16, batch_norm=True, classes=1000)),
    "resnet18": ("torchvision", 224, ResNet(depth=18, classes=1000)),
    "resnet50": ("torchvision", 224, ResNet(depth=50, classes=1000)),
    "resnext50_32x4d": ("torchvision", 224,
                        ResNet(depth=50, groups=32, group_width=4, classes=1000)),
    "wide_resnet50_2": ("torchvision", 224, ResNet(depth=50, group_width=128, classes=1000)),
    "seresnet50": ("timm", 224, ResNet(depth=50, squeeze=16, classes=1000)),
    "resnetv2_50": ("timm", 224, ResNetV2(depth=50, form="imagenet", classes=1000)),
    "densenet121": ("torchvision", 224, DenseNet(depth=121, classes=1000)),
    "mobilenet_v2": ("torchvision", 224, MobileNetV2(classes=1000)),
    "efficientnet_b0": ("torchvision", 224, EfficientNet(variant="B0", classes=1000)),
    "efficientnet_b5": ("torchvision", 224, EfficientNet(variant="B5", classes=1000)),
    "tf_efficientnet_lite0": ("timm", 224, EfficientNet(variant="Lite0", classes=1000)),
    "tf_efficientnet_lite4": ("timm", 224, EfficientNet(variant="Lite4", classes=1000)),
    "convnext_tiny": ("torchvision", 224, ConvNeXt(classes=1000)),
    "vit_b_16": ("torchvision", 224, VisionTransformer(classes=1000)),
    "vit_small_patch16_224": ("timm", 224, VisionTransformer(width=384, heads=6, classes=1000)),
    "mixer_b16_224": ("timm", 224, Mixer(classes=1000)),
}


def compared(name: str, python: str, folder: Path) -> tuple[int, float, float, str]:
    """(parameters, largest output, largest difference, what came of writing them back)."""
    library, size, model = MODELS[name]
    subprocess.run([python, str(Path(__file__).parent / "peers" / "with_torchvision.py"),
                    library, name, str(size), str(folder)], check=True)
    path = folder / "weights.safetensors"
    example = weights.read(folder / "example.safetensors", ["image", "output"])
    image, expected = example["image"], example["output"]
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    wanted = {p: x.shape for p, x in named(abstract).items()}
    _, found, _ = weights.stored(path, model, wanted)
    if set(found) != set(wanted):
        raise SystemExit(f"{name}: {sorted(set(found) ^ set(wanted))[:5]} are in one of them only")
    wrong = [p for p in wanted if tuple(found[p][1]) != wanted[p]]
    if wrong:
        raise SystemExit(f"{name}: {wrong[0]} is {found[wrong[0]][1]} there, "
                         f"{wanted[wrong[0]]} here")
    arrays = weights.read(path, [there for there, _ in found.values()])
    flat = {p: weights.from_torch(p, arrays[found[p][0]], wanted[p]) for p in wanted}
    variables = jax.tree.unflatten(jax.tree.structure(abstract), [flat[p] for p in wanted])
    output = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image))

    copy = folder / "copy.safetensors"
    weights.write(copy, flat, weights.of_model(model)[library], {})
    again = weights.read(copy, list(arrays))
    same = all(again[n].tobytes() == arrays[n].tobytes() for n in arrays)
    shaped = all(again[n].shape == arrays[n].shape for n in arrays)
    back = ("equal" if shaped else "equal but for dimensions of one") if same else "DIFFERENT"
    parameters = sum(x.size for p, x in flat.items() if p.startswith("params/"))
    return parameters, float(np.abs(expected).max()), float(np.abs(output - expected).max()), back


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    flags = parser.parse_args()
    compilation.keep_programs()
    table = Table("network", "library", "parameters", "largest output", "largest difference",
                  "written back", box=MARKDOWN)
    bad = 0
    for name in flags.models:
        with tempfile.TemporaryDirectory() as folder, conv.plain():
            count, most, difference, back = compared(name, flags.torch_python, Path(folder))
        bad += difference > BOUND * most or back == "DIFFERENT"
        table.add_row(name, MODELS[name][0], f"{count:,}", f"{most:.3g}", f"{difference:.1e}", back)
        print(f"{name}: {difference / most:.1e}", file=sys.stderr)
    Console(width=200).print(table)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
