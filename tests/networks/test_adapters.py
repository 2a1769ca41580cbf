"""A site added to a trained PMM-Synth: it learns, the old ones do not notice, and its file is small."""

import json

import pytest
import torch
from test_pmm_synth import DWI, T1, having, make_images, make_network, parameters

from monai_ext.networks import PMMSynth
from monai_ext.networks.adapters import (
    Adapter,
    add_site,
    know_sites,
    load_adapter,
    newest_adapter,
    personalised,
    personalized_network,
    save_adapter,
)
from monai_ext.weights import save_weights


def train(network: PMMSynth, adapter: Adapter, steps: int) -> list[float]:
    """Towards a picture that the network does not make; the losses."""
    images = make_images(T1, DWI, batch=2)
    site = torch.full((2,), network.site_index(adapter.name))
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        loss = (network(images, site=site) - images.flip(2)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def outputs(network: PMMSynth) -> list[torch.Tensor]:
    """Of the four sites and of none, together and one at a time."""
    images = make_images(T1, DWI, batch=4)
    with torch.no_grad():
        return [network(images), network(images, site=torch.arange(4))] + [
            network(images[:1], site=torch.tensor([number])) for number in range(4)
        ]


def test_old_sites_get_the_same_bits_after_a_new_one_has_been_learnt():
    network = make_network()
    before = outputs(network)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    losses = train(network, add_site(network, "ours"), steps=8)
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(network), strict=True))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in weights.items())


def test_an_untrained_adapter_is_the_mean_of_the_known_sites_and_changes_no_weight():
    network = make_network()
    images = make_images(T1)
    with torch.no_grad():
        mean = network.embedding(torch.arange(4)).mean(0, keepdim=True)
        add_site(network, "ours")
        torch.testing.assert_close(network.embedding(torch.tensor([4])), mean)
        given = having((T1,))
        expected = network._synthesise(images, given, [True] * 6, mean, -1)
        torch.testing.assert_close(network(images, site=torch.tensor([4]))[..., :24, :16], expected[..., :24, :16])


def test_the_adapter_alone_is_trained_and_all_of_it_is():
    network = make_network()
    add_site(network, "first")
    adapter = add_site(network, "second")
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.up, std=0.1)  # at its start, 0, it lets no gradient to the other factor
    network(make_images(*range(6)), site=torch.tensor([5])).square().mean().backward()
    learns = {name for name, value in network.named_parameters() if value.requires_grad}
    assert learns == {name for name, value in network.named_parameters() if value.grad is not None}
    assert len(learns) == len(list(adapter.parameters()))
    assert all(value.grad.any() for value in adapter.parameters())


def test_old_and_new_samples_of_one_batch_get_what_they_get_alone():
    network = make_network()
    for name in ("first", "second"):
        train(network, add_site(network, name), steps=2)
    images, site = make_images(T1, DWI, batch=5), torch.tensor([5, 0, 4, 5, 2])
    with torch.no_grad():
        together = network(images, site=site)
        for row in range(5):
            alone = network(images[row : row + 1], site=site[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("personalized", [True, False])
def test_a_network_that_no_site_was_added_to_has_no_adapter(personalized):
    network = PMMSynth(modalities=("T1", "T2"), width=8, sites=("first",), personalized=personalized)
    with pytest.raises(ValueError, match="no site was added to this network"):
        newest_adapter(network)


def test_a_stored_adapter_brings_the_site_back_to_a_fresh_network(tmp_path):
    network = make_network()
    adapter = add_site(network, "ours", rank=2)
    train(network, adapter, steps=2)
    save_adapter(network, adapter, tmp_path / "ours.pt")
    about = json.loads((tmp_path / "ours.json").read_text())
    assert (about["site"], about["rank"]) == ("ours", 2)
    fresh = make_network()
    add_site(fresh, "another")  # which number a site gets does not matter
    load_adapter(fresh, tmp_path / "ours.pt")
    images = make_images(T1, DWI)
    made = [net(images, site=torch.tensor([net.site_index("ours")])) for net in (network, fresh)]
    assert torch.equal(*made)


def test_weights_and_an_adapter_that_say_dataset_as_they_once_did_are_still_read(tmp_path):
    network = make_network()
    save_weights(tmp_path / "model.pt", network, {"sites": ["north", "south"]})
    know_sites(network, ["north", "south"])
    save_adapter(network, add_site(network, "ours"), tmp_path / "ours.pt")
    for name, today, before in (("model", "sites", "datasets"), ("ours", "site", "dataset")):
        path = tmp_path / f"{name}.json"
        about = json.loads(path.read_text())
        about[before] = about.pop(today)
        path.write_text(json.dumps(about))
    fresh = personalized_network(make_network(), tmp_path / "model.pt", adapters=tmp_path / "ours.pt")
    assert fresh.sites == ("north", "south", "ours")


def test_the_stored_file_holds_the_new_tensors_alone(tmp_path):
    network = make_network(width=16)
    before = parameters(network)
    adapter = add_site(network, "ours")
    save_adapter(network, adapter, tmp_path / "ours.pt")
    stored = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert sum(value.numel() for value in stored.values()) == parameters(network) - before < 0.07 * before


def test_an_adapted_network_can_be_scripted():
    network = make_network(modalities=("T1", "FLAIR"))
    adapter = add_site(network, "ours")
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.up, std=0.1)
    images, site = torch.rand(3, 2, 17, 20), torch.tensor([4, 1, 4])
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(images, None, site), network(images, None, site))
    torch.testing.assert_close(scripted(images), network(images))


def test_an_adapter_of_other_weights_is_refused(tmp_path):
    network = make_network()
    save_adapter(network, add_site(network, "ours"), tmp_path / "ours.pt")
    other = make_network()
    with torch.no_grad():
        other.decoders[0].last.bias += 1
    with pytest.raises(ValueError, match=r"ours\.pt was learnt on a network with other weights"):
        load_adapter(other, tmp_path / "ours.pt")
    assert "ours" not in other.sites
    (tmp_path / "ours.json").unlink()
    with pytest.raises(ValueError, match="the JSON beside it does not say site, rank, network_sha256"):
        load_adapter(make_network(), tmp_path / "ours.pt")


def test_a_known_name_no_rank_and_a_network_without_pfm_are_refused():
    network = make_network()
    with pytest.raises(ValueError, match="the network knows site 'BraTS'"):
        add_site(network, "BraTS")
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        add_site(network, "ours", rank=0)
    with pytest.raises(ValueError, match="personalized=False"):
        add_site(make_network(personalized=False), "ours")
    assert network.decoders[0].last.weight.requires_grad


def test_weights_without_modulation_make_the_same_with_it_and_take_a_site():
    plain = PMMSynth(modalities=("T1", "T2"), sites=("phantoms",), width=4, personalized=False).eval()
    whole = PMMSynth(modalities=("T1", "T2"), sites=("phantoms",), width=4).eval()
    whole.load_state_dict(personalised(whole, plain.state_dict()))
    x = torch.rand(1, 2, 16, 16)
    for site in (None, torch.tensor([0])):
        torch.testing.assert_close(whole(x, None, site), plain(x))
    add_site(whole, "ours")
    with pytest.raises(ValueError, match="no weights of this network without its modulation"):
        personalised(whole, {**plain.state_dict(), "more": x})
