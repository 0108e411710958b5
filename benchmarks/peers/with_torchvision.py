"""Writes a network of torchvision or timm with random weights, an input and its output.

    python with_torchvision.py LIBRARY NAME SIZE FOLDER

Called by benchmarks/parity.py in an environment that has torch, torchvision, timm and safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(library: str, name: str, size: str, folder: str) -> None:
    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    model.eval()
    # A fresh network hides mistakes: norms that do nothing, branches that are scaled to zero, heads
    # of zeros. So everything gets values of its own, such that the output stays of order 1.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, x in model.state_dict().items():
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            if key.endswith("running_var"):
                x.copy_(1 + 0.2 * noise.abs())
            elif x.ndim > 1 and x.shape[1:].numel() > 1:
                x.copy_(noise * x.shape[1:].numel() ** -0.5)
            elif key.endswith(("bias", "running_mean", "token")):
                x.copy_(0.1 * noise)
            else:  # scales of norms and of layers
                x.copy_(1 + 0.1 * noise)
        image = torch.randn(2, 3, int(size), int(size), generator=generator)
        output = model(image)
    weights = {key: x.clone().contiguous() for key, x in model.state_dict().items()}
    save_file(weights, Path(folder) / "weights.safetensors")
    save_file({"image": image.permute(0, 2, 3, 1).contiguous(), "output": output},
              Path(folder) / "example.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
