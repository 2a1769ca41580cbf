"""Several processes train as one does: the same steps, the same samples, the same weights."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_ext.data.batching import Draw, Kind, ModalityConsistentBatches
from monai_ext.training.engine import PairedAdversarialTrainer
from monai_ext.training.objectives import Pix2Pix

SAMPLES, BATCH = 10, 4


class Noise(Dataset[dict[str, Tensor]]):
    """Images that follow from the draw, augmentation's seed included."""

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * draw.sample + draw.seed % 1000)
        sources = torch.rand(2, 8, 8, generator=generator)
        return {"sources": sources, "target": sources.mean(0, keepdim=True)}


def train(folder: Path, rank: int, world_size: int) -> None:
    """Two epochs; `weights-WORLD-RANK.pt` is what they end with."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    kinds = [Kind("a", (True,) * 3)] * SAMPLES
    sampler = ModalityConsistentBatches(kinds, batch_size=BATCH, rank=rank, world_size=world_size)
    trainer = PairedAdversarialTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=DataLoader(Noise(), batch_sampler=sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1e-4),
        objective=Pix2Pix(),
        amp=False,
    )
    trainer.run()
    result = {"steps": torch.tensor(trainer.state.iteration), **network.state_dict()}
    torch.save(result, folder / f"weights-{world_size}-{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def entry(rank: int, folder: Path, world_size: int) -> None:
    train(folder, rank, world_size)


def test_two_processes_take_the_steps_of_one_and_end_with_its_weights(tmp_path: Path):
    train(tmp_path, 0, 1)
    mp.start_processes(entry, (tmp_path, 2), nprocs=2, start_method="fork")  # which imports nothing anew
    one, *two = (torch.load(tmp_path / f"weights-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert one["steps"] == 2 * 3
    for result in two:
        torch.testing.assert_close(result, one, rtol=1e-4, atol=1e-6)
