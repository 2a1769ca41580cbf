"""The trainer: who is shown what, whose weights move, and what a killed run goes on to."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.networks.nets import PatchDiscriminator
from monai.utils import set_determinism
from torch import nn

from monai_ext.data.batching import Kind
from monai_ext.training.averaging import running_mean
from monai_ext.training.checkpoints import Checkpoints
from monai_ext.training.engine import LossNotFinite, PairedAdversarialTrainer
from monai_ext.training.objectives import Pix2Pix
from monai_ext.training.schedules import epochs_of


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Dropout(0.2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def small_discriminator() -> nn.Module:
    return PatchDiscriminator(spatial_dims=2, channels=8, in_channels=3, num_layers_d=2)


def batches(count: int = 4, size: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for number in range(count):
        sources = torch.rand(size, 2, 24, 24, generator=generator)
        subjects = [f"case{number}{index}" for index in range(size)]
        made.append({"sources": sources, "target": sources.mean(1, keepdim=True), "subject": subjects})
    return made


def trainer(*, data: list[dict] | None = None, adversary: bool = True, epochs: int = 1, lr: float = 1e-3, **options):
    torch.manual_seed(0)
    network = options.pop("network", None) or small_network()
    if adversary:
        discriminator = small_discriminator()
        options["discriminator"] = discriminator
        options["discriminator_optimizer"] = torch.optim.Adam(discriminator.parameters(), lr)
    return PairedAdversarialTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches() if data is None else data,
        network=network,
        optimizer=options.pop("optimizer", None) or torch.optim.Adam(network.parameters(), lr),
        objective=options.pop("objective", None) or Pix2Pix(),
        amp=options.pop("amp", False),
        **options,
    )


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_the_best_validated_weights_stay_or_the_last_where_none_was_validated(tmp_path: Path, interval: int):
    """Three epochs, of which validation likes each better than the one before."""
    state = SimpleNamespace(best_metric=-1.0, best_metric_epoch=-1)
    engine = trainer(epochs=3)
    kept: dict[int, dict] = {}

    def validate(engine: PairedAdversarialTrainer) -> None:
        kept[engine.state.epoch] = copy.deepcopy(engine.network.state_dict())
        if engine.state.epoch % interval == 0:
            state.best_metric, state.best_metric_epoch = float(engine.state.epoch), engine.state.epoch

    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    weights = tmp_path / "model.pt"
    Checkpoints(
        folder=tmp_path / "checkpoints", weights=weights, about={}, validator=SimpleNamespace(state=state)
    ).attach(engine)
    engine.run()
    found = torch.load(weights, weights_only=True)
    wanted = kept[{1: 3, 2: 2, 5: 3}[interval]]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not all(torch.equal(found[name], value) for name, value in kept[1].items())


@pytest.mark.parametrize(("steps", "lengths"), [(3, [3]), (4, [4]), (6, [4, 2]), (8, [4, 4])])
def test_so_many_steps_are_so_many_and_the_last_epoch_is_finished_early(steps: int, lengths: list[int]):
    engine, found = trainer(adversary=False, epochs=1, steps=steps), []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda trainer: found.append(trainer.state.iteration))
    engine.run()
    assert engine.state.iteration == steps
    assert [b - a for a, b in zip([0, *found], found, strict=False)] == lengths


def test_a_step_of_no_batch_is_refused():
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        trainer(adversary=False, accumulate=0)


@pytest.mark.parametrize(
    ("steps", "accumulate", "epochs", "batches_seen"),
    [(3, 2, 2, 6), (2, 2, 1, 4), (3, 3, 2, 7), (4, 3, 2, 8), (1, 9, 1, 4)],
)
def test_steps_are_the_optimizers_however_many_batches_one_takes(
    steps: int, accumulate: int, epochs: int, batches_seen: int
):
    engine = trainer(adversary=False, steps=steps, accumulate=accumulate)
    assert len(batches()) == 4
    taken = []
    engine.optimizer.register_step_post_hook(lambda *_: taken.append(engine.state.iteration))
    engine.run()
    assert (len(taken), engine.state.epoch, engine.state.iteration) == (steps, epochs, batches_seen)
    kinds = [Kind("ixi", (True,))] * 4
    assert epochs_of(epochs=9, steps=steps, kinds=kinds, batch_size=1, accumulate=accumulate) == epochs


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_are_a_whole_number(steps: float):
    with pytest.raises(ValueError, match=f"steps must be a whole number of at least 1, or null, got {steps}"):
        trainer(steps=steps)


def test_the_discriminator_is_shown_the_target_as_real_and_the_prediction_as_fake_each_with_the_sources():
    engine = trainer(data=batches(1))
    shown = []
    engine.discriminator.register_forward_hook(lambda _module, inputs, _output: shown.append(inputs[0].detach()))
    asked = []
    adversarial = engine.objective.adversarial
    engine.objective.adversarial = lambda *args, **kwargs: (
        asked.append((kwargs["target_is_real"], kwargs["for_discriminator"])),
        adversarial(*args, **kwargs),
    )[1]
    engine.run()
    batch, made = batches(1)[0], engine.state.output[0]["pred"]
    for image, number in ((batch["target"], 0), (made, 1), (made, 2)):
        torch.testing.assert_close(shown[number], torch.cat([batch["sources"], image], 1))
    assert asked == [(True, True), (False, True), (True, False)]


def test_each_step_moves_its_own_network_and_leaves_no_gradient_in_the_other():
    engine = trainer(data=batches(1))
    before = copy.deepcopy(engine.discriminator.state_dict()), copy.deepcopy(engine.network.state_dict())
    moved_first = []
    step = engine.discriminator_optimizer.step
    engine.discriminator_optimizer.step = lambda *args, **kwargs: (
        moved_first.append(
            all(
                torch.equal(a, b) for a, b in zip(before[1].values(), engine.network.state_dict().values(), strict=True)
            )
        ),
        moved_first.append(all(p.grad is None for p in engine.network.parameters())),
        step(*args, **kwargs),
    )[-1]
    grads = []
    own = engine.optimizer.step
    engine.optimizer.step = lambda *args, **kwargs: (
        grads.append([p.grad.clone() for p in engine.discriminator.parameters()]),
        own(*args, **kwargs),
    )[-1]
    engine.run()
    assert moved_first == [True, True]
    assert any(
        not torch.equal(a, b) for a, b in zip(before[1].values(), engine.network.state_dict().values(), strict=True)
    )
    for parameter, grad in zip(engine.discriminator.parameters(), grads[0], strict=True):
        assert torch.equal(parameter.grad, grad), "the network's step added to the discriminator's gradient"


def test_the_terms_are_named_and_their_means_are_the_epochs_metrics():
    engine = trainer()
    seen: list[dict] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.output[0]))
    engine.run()
    names = {
        "discriminator_real",
        "discriminator_fake",
        "generator_pixel",
        "generator_adversarial",
        "loss",
        "data_wait",
    }
    assert names <= set(engine.state.metrics)
    mean = sum(output["generator_pixel"] for output in seen) / len(seen)
    assert engine.state.metrics["generator_pixel"] == pytest.approx(mean)
    assert seen[0]["loss"] == pytest.approx(seen[0]["generator_pixel"] + seen[0]["generator_adversarial"])
    assert 0 <= engine.state.metrics["data_wait"] < 1


def test_without_a_discriminator_the_same_trainer_minimises_l1_alone():
    engine = trainer(adversary=False, epochs=30, lr=1e-2)
    first: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: first.append(engine.state.output[0]["loss"]))
    engine.run()
    assert set(engine.state.output[0]) == {"loss", "generator_pixel", "pred"}
    assert first[-1] < 0.3 * first[0]


@pytest.mark.parametrize("count", [4, 5])
def test_accumulated_batches_step_as_one_batch_of_them_all(count: int):
    network = nn.Conv2d(2, 1, 3, padding=1)
    data = batches(count, size=2)
    merged = [
        {key: torch.cat([one[key] for one in data[i : i + 2]]) for key in ("sources", "target")}
        for i in range(0, count, 2)
    ]
    results = []
    for given, accumulate in ((data, 2), (merged, 1)):
        own = copy.deepcopy(network)
        optimizer = torch.optim.SGD(own.parameters(), 1e-3)
        trainer(data=given, adversary=False, network=own, optimizer=optimizer, accumulate=accumulate).run()
        results.append(own.weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("decay", "accumulate"), [(0.6, 1), (0.999, 1), (0.6, 2)])
def test_the_running_mean_is_of_every_step_and_is_what_is_kept(tmp_path: Path, decay: float, accumulate: int):
    network, seen = small_network(), []
    mean = running_mean(network, decay)
    engine = trainer(network=network, data=batches(6), averaged=mean, accumulate=accumulate)
    step = engine.optimizer.step
    engine.optimizer.step = lambda: (step(), seen.append(copy.deepcopy(network.state_dict())))[0]
    Checkpoints(folder=tmp_path / "checkpoints", weights=tmp_path / "model.pt", about={}).attach(engine)
    engine.run()
    assert len(seen) == 6 // accumulate
    kept, trained = torch.load(tmp_path / "model.pt", weights_only=True), network.state_dict()
    for name in trained:
        wanted = seen[0][name]
        for number, weights in enumerate(seen[1:], 1):
            share = max(1 - decay, 1 / (number + 1))
            wanted = (1 - share) * wanted + share * weights[name]
        torch.testing.assert_close(kept[name], wanted)
        assert not torch.equal(kept[name], trained[name])
    if decay == 0.999:
        torch.testing.assert_close(kept["0.bias"], torch.stack([each["0.bias"] for each in seen]).mean(0))


def test_a_batch_norms_statistics_are_of_the_weights_that_are_kept():
    """Weights that swing between two points, and in the middle the statistics that belong there."""
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, momentum=0.5))
    mean, x = running_mean(network, 0.99), torch.rand(8, 1, 6, 6)
    for step in range(200):
        nn.init.constant_(network[0].weight, 2.0 if step % 2 else 1.0)
        network(x)
        mean.update_parameters(network)
    torch.testing.assert_close(mean.module[0].weight, torch.full((3, 1, 1, 1), 1.5), atol=0.02, rtol=0)
    torch.testing.assert_close(mean.module[1].running_mean, mean.module[0](x).mean((0, 2, 3)), atol=0.02, rtol=0)
    assert mean.module[1].num_batches_tracked == 200


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), True, "0.9"])
def test_a_running_mean_that_cannot_be_is_refused(decay: object):
    with pytest.raises(ValueError, match="decay must be from 0 to below 1"):
        running_mean(small_network(), decay)


def test_bfloat16_trains_the_network_in_float32_weights():
    engine = trainer(amp="bf16", epochs=2)
    dtypes = set()
    engine.network[0].register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    engine.run()
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in engine.network.parameters()} == {torch.float32}
    assert engine.state.output[0]["pred"].dtype is torch.float32


def test_a_loss_that_is_not_finite_names_term_iteration_subjects_and_the_last_good_checkpoint(tmp_path: Path):
    data = batches()
    state = {"epoch": 0}

    class Poisoned(list):
        def __iter__(self):
            state["epoch"] += 1
            for number, batch in enumerate(list.__iter__(self)):
                bad = state["epoch"] == 2 and number == 1
                yield {**batch, "target": batch["target"] * torch.nan} if bad else batch

    keep = Checkpoints(folder=tmp_path / "checkpoints", weights=tmp_path / "model.pt", about={})
    engine = trainer(data=Poisoned(data), epochs=3, handlers=[keep])
    with pytest.raises(LossNotFinite, match=r"iteration 6 of epoch 2: .*real|fake") as caught:
        engine.run()
    for part in ("subjects: case10, case11, case12", "epoch_00001.pt"):
        assert part in str(caught.value)
    assert [path.name for path in keep] == ["epoch_00001.pt"]


def test_a_discriminator_without_its_optimiser_is_refused():
    with pytest.raises(ValueError, match="discriminator and discriminator_optimizer, or neither"):
        PairedAdversarialTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=[],
            network=nn.Conv2d(2, 1, 1),
            optimizer=SimpleNamespace(),
            objective=Pix2Pix(),
            discriminator=nn.Conv2d(3, 1, 1),
        )


def run_with_checkpoints(folder: Path, *, epochs: int, resume: bool = False, network: nn.Module | None = None):
    set_determinism(3)
    network = network or small_network()
    mean = running_mean(network, 0.8)
    engine = trainer(epochs=epochs, resume=resume, network=network, averaged=mean, handlers=[])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(engine.optimizer, 0.7)
    engine.schedulers = (scheduler,)
    about = {"network_def": {"width": 8}}
    Checkpoints(folder=folder / "checkpoints", weights=folder / "model.pt", about=about).attach(engine)
    engine.run()
    set_determinism(None)
    return engine


def test_a_run_stopped_and_resumed_ends_in_the_same_weights_to_the_bit(tmp_path: Path):
    whole = run_with_checkpoints(tmp_path / "whole", epochs=4)
    run_with_checkpoints(tmp_path / "parts", epochs=2)
    torch.rand(5)  # other random numbers in between
    parts = run_with_checkpoints(tmp_path / "parts", epochs=4, resume=True)
    assert parts.state.epoch == whole.state.epoch == 4
    assert parts.state.iteration == whole.state.iteration
    for name in ("network", "discriminator", "averaged"):
        one, other = getattr(whole, name), getattr(parts, name)
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert whole.optimizer.param_groups[0]["lr"] == parts.optimizer.param_groups[0]["lr"]


def test_a_checkpoint_cut_short_is_named_and_the_one_before_it_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = run_with_checkpoints(tmp_path / "whole", epochs=4)
    run_with_checkpoints(tmp_path / "parts", epochs=3)
    newest = tmp_path / "parts" / "checkpoints" / "epoch_00003.pt"
    newest.write_bytes(newest.read_bytes()[:-2000])
    resumed = run_with_checkpoints(tmp_path / "parts", epochs=4, resume=True)
    assert "epoch_00003.pt is cut short or damaged" in caplog.text
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])


def test_weights_that_are_there_are_not_written_over(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"somebody's best")
    with pytest.raises(ValueError, match=r"model\.pt is there already.*begin with it by --start_from"):
        run_with_checkpoints(tmp_path, epochs=1)
    assert (tmp_path / "model.pt").read_bytes() == b"somebody's best"


def test_an_earlier_trainings_checkpoints_are_not_written_over(tmp_path: Path):
    run_with_checkpoints(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="earlier training: go on from them with --resume true"):
        run_with_checkpoints(tmp_path, epochs=1)


def test_a_finished_training_resumed_has_nothing_to_do(tmp_path: Path):
    first = run_with_checkpoints(tmp_path, epochs=2)
    again = run_with_checkpoints(tmp_path, epochs=2, resume=True)
    assert again.state.epoch == 2
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_resuming_with_another_network_says_what_the_checkpoint_was_made_with(tmp_path: Path):
    run_with_checkpoints(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"its network does not fit .* made with network_def \{'width': 8\}"):
        run_with_checkpoints(tmp_path, epochs=2, resume=True, network=nn.Conv2d(2, 1, 3, padding=1))


def test_resuming_from_nothing_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no checkpoint to resume from"):
        run_with_checkpoints(tmp_path, epochs=1, resume=True)
