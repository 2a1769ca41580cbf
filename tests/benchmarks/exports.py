"""How far an archive's image is from its network's: each network at paper width, each kind of archive, random weights.

python tests/benchmarks/exports.py --size 64
"""

import argparse
import io
import warnings
from collections.abc import Callable

import torch
from steps import through_onnx
from torch import Tensor, nn

from monai_ext.networks import FDGAN, AGINet, HMFMambaINR, PMMSynth

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AGI-Net": (AGINet, 2),
    "PMM-Synth": (lambda: PMMSynth(width=32), 6),
    "FD-GAN": (FDGAN, 2),
    "HMF-MambaINR": (HMFMambaINR, 2),
}


def by_script(network: nn.Module, image: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    return torch.jit.load(file)(image)


def by_onnx(network: nn.Module, image: Tensor) -> Tensor:
    return through_onnx(network, image)()


def by_export(network: nn.Module, image: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (image,)), file)
    file.seek(0)
    return torch.export.load(file).module()(image)


ARCHIVES = {"TorchScript": by_script, "ONNX": by_onnx, "torch.export": by_export}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("              " + "".join(f"{name:>14}" for name in ARCHIVES))
    for name, (make, channels) in NETWORKS.items():
        network, image = make().eval(), torch.rand(1, channels, args.size, args.size)
        expected = network(image)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apart = [float((archive(network, image) - expected).abs().max()) for archive in ARCHIVES.values()]
        print(f"{name:14}" + "".join(f"{value:>14.1e}" for value in apart), flush=True)


if __name__ == "__main__":
    main()
