"""PMM-Synth: what is not there cannot matter, what nobody needs is not computed, and PFM begins as the identity."""

import io
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from check_network import check_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.files import sha256, write_json
from monai_ext.networks import PMMSynth
from monai_ext.networks.pfm import PersonalizedNorm
from monai_ext.weights import load_weights

T1, T2, T1C, FLAIR, DWI, ADC = range(6)


def make_network(**options: object) -> PMMSynth:
    """In a trained state: PFM is no longer the identity, in which it starts."""
    torch.manual_seed(0)
    network = PMMSynth(**{"width": 4, **options}).eval()
    for name, parameter in network.named_parameters():
        if "norm.mlp.2" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


def make_images(*contrasts: int, batch: int = 1, size: tuple[int, int] = (24, 16)) -> Tensor:
    images = torch.rand(batch, 6, *size, generator=torch.Generator().manual_seed(1)) + 0.1
    missing = [number for number in range(6) if number not in contrasts]
    images[:, missing] = 0
    return images


def having(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor([[number in row for number in range(6)] for row in rows])


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def network() -> PMMSynth:
    return make_network()


@pytest.fixture
def computed(network: PMMSynth):
    """Names of the streams that a forward passes through."""
    names: list[str] = []
    streams = {"common": network.common}
    streams |= {f"from {name}": stream for name, stream in zip(network.modalities, network.specific, strict=True)}
    streams |= {f"to {name}": stream for name, stream in zip(network.modalities, network.decoders, strict=True)}
    hooks = [stream.register_forward_hook(lambda *_, name=name: names.append(name)) for name, stream in streams.items()]
    yield names
    for hook in hooks:
        hook.remove()


def test_it_keeps_the_contract():
    """Without PFM, which a forward that names no site leaves idle; the tests below have it."""

    def make() -> PMMSynth:
        return PMMSynth(modalities=("T1", "T2"), width=4, personalized=False)

    check_network(make, in_channels=2, out_channels=2, sizes=((24, 40), (17, 30), (1, 1)), onnx=False)


@pytest.mark.parametrize("garbage", [0.0, 1.0, -1e6, float("nan"), float("inf")])
def test_the_value_of_a_missing_contrast_cannot_change_the_output(network, garbage):
    images, available = make_images(T1, FLAIR), having((T1, FLAIR))
    spoilt = images.masked_fill(~available[:, :, None, None], garbage)
    site = torch.tensor([2])
    assert torch.equal(network(spoilt, available, site), network(images, None, site))


def test_no_gradient_reaches_the_value_of_a_missing_contrast(network):
    images = make_images(T1, T2, DWI).requires_grad_()
    network(images, having((T1, DWI))).square().sum().backward()
    assert images.grad.abs().amax((0, 2, 3)).gt(0).tolist() == [True, False, False, False, True, False]


def test_only_the_streams_that_a_batch_needs_are_computed(network, computed):
    network(make_images(T1, FLAIR, batch=2))
    assert computed == ["common", "from T1", "from FLAIR", *(f"to {name}" for name in network.modalities)]


def test_only_the_wanted_contrasts_are_decoded_and_the_others_are_zeros(network, computed):
    images = make_images(T2)
    wanted = torch.tensor([False, False, True, False, False, True])
    some = network(images, wanted=wanted)
    assert computed == ["common", "from T2", "to T1C", "to ADC"]
    everything = network(images)
    assert torch.equal(some[:, wanted], everything[:, wanted])
    assert not some[:, ~wanted].any()


def test_a_batch_of_mixed_contrasts_and_sites_gives_what_each_sample_gives_alone(network):
    images, available = make_images(*range(6), batch=3), having((T1, T2), (DWI,), tuple(range(6)))
    site = torch.tensor([3, 0, 1])
    together = network(images, available, site)
    for row in range(3):
        alone = network(images[row : row + 1], available[row : row + 1], site[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_every_given_contrast_matters_to_every_output(network):
    images, available = make_images(T1, DWI), having((T1, DWI))
    plain = network(images, available)
    for contrast in (T1, DWI):
        changed = images.clone()
        changed[:, contrast] = changed[:, contrast].flip(-1)
        assert (network(changed, available) - plain).abs().amax((0, 2, 3)).gt(1e-4).all()


def test_a_residual_begins_as_its_base_where_that_is_there(network):
    over = make_network(residual=["t1ce over T1"])
    over.load_state_dict(network.state_dict(), strict=False)
    images, available = make_images(*range(6), batch=2), having((T1, T2), (T2, FLAIR))
    made, plain = over(images, available), network(images, available)
    torch.testing.assert_close(made[0, T1C], images[0, T1])
    made[0, T1C] = plain[0, T1C]
    torch.testing.assert_close(made, plain)


def test_a_residual_adds_to_its_base_and_nothing_to_air():
    over = make_network(residual=["T1C over T1"])
    nn.init.normal_(over.decoders[T1C].over.weight)
    images = make_images(T1, FLAIR)
    images[:, T1, :, :4] = 0
    added = over(images)[:, T1C] - images[:, T1]
    assert not added[:, :, :4].any()
    assert added[:, :, 4:].abs().mean() > 0.1
    given, wants = [True, False, False, True, False, False], [False, False, True, False, False, False]
    torch.testing.assert_close(over.graph_of_task(images, given, None, wants)[:, T1C], over(images)[:, T1C])


def test_an_empty_image_stays_empty_and_leaves_its_neighbours_alone(network, computed):
    images = make_images(T1, ADC, batch=2)
    images[1] = 0
    made = network(images)
    assert [name for name in computed if "from" in name] == ["from T1", "from ADC"]
    assert not made[1].any()
    torch.testing.assert_close(made[:1], network(images[:1]), atol=1e-5, rtol=1e-5)
    assert not network(torch.zeros(1, 6, 16, 16)).any()


def test_a_given_contrast_may_be_black_where_available_says_that_it_is_there(network):
    images, available = make_images(T1), having((T1, T2))
    assert not torch.equal(network(images, available), network(images))


def test_personalization_starts_as_the_identity_for_every_dataset():
    torch.manual_seed(0)
    network = PMMSynth(width=4).eval()
    without = PMMSynth(width=4, personalized=False).eval()
    without.load_state_dict(network.state_dict(), strict=False)
    images = make_images(T1, T2, batch=4)
    assert torch.equal(network(images, site=torch.arange(4)), network(images))
    assert torch.equal(network(images), without(images))


def test_each_site_has_a_style_of_its_own_once_pfm_has_learnt(network):
    made = network(make_images(T1).expand(4, -1, -1, -1), site=torch.arange(4))
    nobody = network(make_images(T1))
    results = torch.cat([made, nobody]).flatten(1)
    assert torch.cdist(results, results).add(torch.eye(5) * 9).min() > 0.1


def test_pfm_modulates_as_the_paper_writes_it():
    network = make_network()
    norm, embedding = network.common.stages[1].enter.norm, network.embedding(torch.tensor([0, 3]))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 6, 5)
    gamma, beta = norm.mlp(embedding)[:, :, None, None].chunk(2, 1)
    features = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(x, embedding), features * (gamma + 1) + beta, atol=1e-5, rtol=1e-5)


def test_the_site_teaches_the_embedding_and_the_contrasts_their_streams():
    network = make_network()
    network(make_images(*range(6), batch=2), site=torch.tensor([0, 1])).square().mean().backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_every_norm_is_modulated():
    network = PMMSynth()
    norms = [module for module in network.modules() if isinstance(module, PersonalizedNorm)]
    assert len(norms) == 174
    assert all(norm.mlp is not None for norm in norms)
    assert network.embedding.mlp[-1].out_features == 16, "half of the width"


def test_weights_of_half_modulated_blocks_are_refused_with_their_version(tmp_path: Path):
    network = make_network()
    old = {name: value for name, value in network.state_dict().items() if ".first.norm.mlp." not in name}
    torch.save(old, tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"version": "0.1.0", "sha256": sha256(tmp_path / "model.pt")})
    with pytest.raises(ValueError, match=r"lacks .*first\.norm\.mlp.*by version 0\.1\.0 of the bundle"):
        load_weights(network, tmp_path / "model.pt")


def test_pfm_adds_under_three_percent_of_the_parameters():
    for width in (16, 32):
        assert parameters(PMMSynth(width=width)) < 1.03 * parameters(PMMSynth(width=width, personalized=False))


def test_one_contrast_costs_at_most_045_of_the_operations_of_six(network):
    counts = []
    for given in ((T1,), range(6)):
        with FlopCounterMode(display=False) as counter:
            network(make_images(*given, size=(64, 64)))
        counts.append(counter.get_total_flops())
    assert counts[0] <= 0.45 * counts[1]


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (16, 16)])
def test_any_size_goes_in_and_comes_out(network, size):
    made = network(make_images(T1, T2, size=size))
    assert made.shape == (1, 6, *size)
    assert made.isfinite().all()


def test_scripted_it_takes_every_argument_and_refuses_the_same():
    network = make_network(modalities=("T1", "T2", "FLAIR"), residual=["FLAIR over T1"])
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    scripted = torch.jit.load(io.BytesIO(file.getvalue()))
    images, available = make_images(T1, T2, T1C, batch=2)[:, :3], having((T1, T2), (T1C,))[:, :3]
    site, wanted = torch.tensor([1, 2]), torch.tensor([0, 1, 1])
    for arguments in ((), (available,), (None, site), (available, site, wanted)):
        torch.testing.assert_close(scripted(images, *arguments), network(images, *arguments))
    with pytest.raises(torch.jit.Error, match="available must give each sample a contrast"):
        scripted(images, torch.zeros(2, 3))


def test_an_exported_graph_serves_whichever_contrasts_are_there():
    network = make_network(modalities=("T1", "FLAIR"))
    images = torch.rand(3, 2, 17, 20)
    images[0, 1], images[1, 0] = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        exported = torch.onnx.export(network, (torch.rand(3, 2, 17, 20),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (made,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), network(images), atol=1e-4, rtol=1e-4)


def test_a_sample_without_a_contrast_is_refused(network):
    with pytest.raises(ValueError, match="available must give each sample a contrast"):
        network(make_images(T1, batch=2), having((T1,), ()))


def test_what_does_not_fit_the_images_is_refused_by_name(network):
    with pytest.raises(ValueError, match=r"x must have 6 channels, .*'FLAIR'.* got 5"):
        network(torch.rand(1, 5, 16, 16))
    with pytest.raises(ValueError, match="available must be 2 x 6"):
        network(make_images(T1, batch=2), having((T1,)))
    for site in (torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match="site must be 2 numbers from 0 to 3"):
            network(make_images(T1, batch=2), site=site)


def test_an_unknown_site_is_refused_with_the_known_ones_and_the_way_out(network):
    assert network.site_index("BraTS") == 2
    with pytest.raises(ValueError, match="unknown site 'brats'; the known ones: TTG, TTI, BraTS, ISLES; null means"):
        network.site_index("brats")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("T1", "T2", "t1w")}, "modalities must be one or more, each named once, got T1, T2, T1"),
        ({"modalities": ()}, "modalities must be one or more, each named once, got none"),
        ({"modalities": ("T1", "CT")}, "unknown contrast 'CT'"),
        (
            {"modalities": ("T1", "T2"), "residual": ["T1C over T1"]},
            "residual is of two of T1, T2, .* got 'T1C over T1'",
        ),
        ({"residual": ["T1 over t1w"]}, "residual is of two of .* got 'T1 over t1w'"),
        ({"residual": ["T1C"]}, "residual is of two of .* got 'T1C'"),
        ({"sites": ("a", "b", "a")}, "sites must be one or more, each named once, got a, b, a"),
        ({"width": 6}, "width must be a multiple of 4, got 6"),
    ],
)
def test_what_makes_no_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PMMSynth(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_processor_gives(network):
    images, site = make_images(T1, T2, batch=2), torch.tensor([0, 3])
    here = network(images, site=site)
    there = make_network().cuda()(images.cuda(), site=site.cuda())
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)
