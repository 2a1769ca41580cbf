"""A site more for a trained PMM-Synth, which forgets nothing: the extension that Zhang et al. leave to the future.

The trained network stays as it is. What is learnt is the new site's embedding, which PFM takes in place of Eq. 1's,
and a low-rank change of each convolution (LoRA, Hu et al., arXiv 2106.09685) that counts for that site alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_ext.files import absolute
from monai_ext.networks.pfm import Conv
from monai_ext.networks.pmm_synth import PMMSynth
from monai_ext.weights import about_weights, load_weights, save_weights


class LowRank(nn.Module):
    """What is added to a convolution's weight: up @ down, nothing at first.

    Args:
        weight: the convolution's, (O, C, k, k).
        rank: of the change; more than the weight has is cut down to it.
    """

    def __init__(self, weight: Tensor, *, rank: int) -> None:
        super().__init__()
        self.shape: list[int] = list(weight.shape)
        after, before = weight.shape[0], weight[0].numel()
        rank = min(rank, after, before)  # more cannot change the weight any further
        self.down = nn.Parameter(torch.randn(rank, before, device=weight.device) / before**0.5)
        self.up = nn.Parameter(torch.zeros(after, rank, device=weight.device))

    def forward(self) -> Tensor:
        """-> (O, C, k, k)"""
        return (self.up @ self.down).reshape(self.shape)


class AddedEmbedding(nn.Module):
    """A vector of its own, for the MLP of Eq. 1 has not learnt what to make of a number that it never saw.

    Args:
        start: (E,), where it starts.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """-> (E,)"""
        return self.vector


class Adapter(nn.Module):
    """All that a site added to a network; its parameters are what to train, its state dict is what to store.

    Args:
        name: of the site.
        rank: of the changes.
        embedding: the site's.
        changes: by the name of the convolution in the network.
    """

    def __init__(self, name: str, rank: int, embedding: AddedEmbedding, changes: dict[str, LowRank]) -> None:
        super().__init__()
        self.name, self.rank, self.embedding = name, rank, embedding
        self.changes = nn.ModuleDict({conv.replace(".", "-"): change for conv, change in changes.items()})


def personalised(network: PMMSynth, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn weights of a network without PFM into those of one with it, which begins as the identity: sites can be
    added.

    Args:
        network: with PFM, of the same contrasts and width.
        weights: a state dict of the network without.

    Returns:
        A state dict for `network`.

    Raises:
        ValueError: they lack more than PFM's parameters, or have what the network has not.
    """
    own = network.state_dict()
    modulation = {name for name in own if name.startswith("embedding.") or ".mlp." in name}
    if network.embedding is None or set(own) - set(weights) != modulation or set(weights) - set(own):
        lacking = sorted((set(own) - set(weights)) ^ modulation | set(weights) - set(own))
        raise ValueError(f"these are no weights of this network without its modulation: {', '.join(lacking[:3])}")
    return {**own, **weights}


def add_site(network: PMMSynth, name: str, *, rank: int = 4) -> Adapter:
    """Freeze the network and give it a new site, whose adapter alone has parameters to train.

    The new embedding starts as the mean of those of the sites that the network was trained on.

    Args:
        network: trained and personalized; it is changed.
        name: of the new site.
        rank: of the change of each convolution.

    Returns:
        What was added.

    Raises:
        ValueError: the network is not personalized, knows a site of this name, or the rank is below 1.

    Example:
        >>> network = PMMSynth(modalities=["T1", "T2"], sites=["ixi", "brats"], width=4)
        >>> adapter = add_site(network, "ours", rank=1)
        >>> network.site_index("ours"), adapter.name
        (2, 'ours')
        >>> learns = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        >>> learns == sum(parameter.numel() for parameter in adapter.parameters())
        True
    """
    if network.embedding is None:
        raise ValueError("a site can be added to a personalized network alone, this one has personalized=False")
    if name in network.sites:
        raise ValueError(f"the network knows site {name!r}: give the new one a name not of {network.sites}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    device = network.embedding.frequencies.device
    embedding = AddedEmbedding(network.embedding(torch.arange(network.trained_on, device=device)).mean(0))
    network.embedding.added.append(embedding)
    changes: dict[str, LowRank] = {}
    for path, module in list(network.named_modules()):
        if isinstance(module, Conv):
            changes[path] = LowRank(module.weight, rank=rank)
            module.changes.append(changes[path])
    network.sites = (*network.sites, name)
    return Adapter(name, rank, embedding, changes)


def newest_adapter(network: PMMSynth) -> Adapter:
    """Gather what `add_site` added to the network last.

    Args:
        network: to which `add_site` or `load_adapter` has added one site or more.

    Returns:
        The last one's adapter. Its parameters are the network's own tensors, not copies.

    Raises:
        ValueError: no site was added to it.
    """
    number = len(network.sites) - network.trained_on - 1
    if network.embedding is None or number < 0:
        raise ValueError("no site was added to this network: add_site makes what an adapter holds")
    changes = {path: module.changes[number] for path, module in network.named_modules() if hasattr(module, "changes")}
    rank = max(change.down.shape[0] for change in changes.values())
    embedding: Any = network.embedding.added[number]
    return Adapter(network.sites[-1], rank, embedding, changes)


def save_adapter(
    network: PMMSynth, adapter: Adapter, path: Path | str, *, about: Mapping[str, Any] | None = None
) -> None:
    """Write a flat state dict of the adapter's tensors alone, and the JSON beside it, which names the site.

    Args:
        network: what the adapter was learnt on.
        adapter: what is written.
        path: the file; a JSON of its name is written beside it.
        about: what else the JSON says.
    """
    identity = {"site": adapter.name, "rank": adapter.rank, "network_sha256": fingerprint(network)}
    save_weights(path, adapter, {**(about or {}), **identity})


def load_adapter(network: PMMSynth, path: Path | str) -> Adapter:
    """Add the site whose adapter `save_adapter` wrote to the network that it was learnt on.

    Args:
        network: with the weights that the adapter was learnt on; it is changed.
        path: the file, its JSON beside it.

    Returns:
        What was added.

    Raises:
        ValueError: it is no adapter, or was learnt on other weights.
    """
    about = about_weights(path)
    missing = [key for key in ("site", "rank", "network_sha256") if key not in about]
    if missing:
        raise ValueError(f"{path} is no adapter of save_adapter: the JSON beside it does not say {', '.join(missing)}")
    if about["network_sha256"] != fingerprint(network):
        raise ValueError(
            f"{path} was learnt on a network with other weights: load those that it was learnt on first, or adapt again"
        )
    adapter = add_site(network, about["site"], rank=about["rank"])
    load_weights(adapter, path)
    return adapter


def fingerprint(network: PMMSynth) -> str:
    """Compute the sha256 of the weights without what was added to them.

    Args:
        network: any; what adapters added to it does not count, so that the digest stays as it was before them.

    Returns:
        64 hexadecimal digits, over the names and the bytes of the state dict: another dtype is another digest.
    """
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if ".changes." not in name and ".added." not in name:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def know_sites(network: PMMSynth, sites: Sequence[str], *, device: torch.device | str | None = None) -> PMMSynth:
    """Make the network one for these sites: it changes no weight of it, for a site's code is computed.

    Args:
        network: whose sites are replaced.
        sites: names, in the order of their numbers.
        device: where the network is put; it stays where it is if None.

    Returns:
        The network.

    Raises:
        ValueError: there is none, or one is named twice.
    """
    if not sites or len(set(sites)) < len(sites):
        raise ValueError(f"sites must be one or more, each named once, got {', '.join(sites) or 'none'}")
    network.sites, network.trained_on = tuple(sites), len(sites)
    if network.embedding is not None:
        network.embedding.sites = len(sites)
    return network.to(device)


def personalized_network(
    network: PMMSynth,
    weights: Path | str,
    *,
    adapters: Path | str | Sequence[Path | str] | None = None,
    device: torch.device | str | None = None,
) -> PMMSynth:
    """Put weights into a network, with the sites that they know and those that adapters added.

    Args:
        network: in which the weights belong; it is changed.
        weights: their file.
        adapters: files of `save_adapter`, in the order in which they are added.
        device: where the network is put; it stays where it is if None.

    Returns:
        The network, ready to predict.

    Raises:
        ValueError: the weights are not there, or are for other contrasts or another network.
    """
    path = absolute(Path(weights))
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}: train the bundle, or name a file with --weights")
    about = load_weights(network, path)
    trained_for = about.get("target")
    if trained_for is not None and trained_for != list(network.modalities):
        raise ValueError(
            f"{path} was trained for {trained_for}, not {list(network.modalities)}: name those with --modalities"
        )
    if "sites" in about:
        know_sites(network, about["sites"])
    for file in [adapters] if isinstance(adapters, str | Path) else adapters or ():
        load_adapter(network, file)
    return network.eval().to(device)


def adapted_network(
    network: PMMSynth,
    weights: Path | str,
    *,
    sites: Sequence[str],
    rank: int = 4,
    device: torch.device | str | None = None,
) -> PMMSynth:
    """Load a trained network, freeze it, and add one new site, whose adapter alone is to be trained.

    Args:
        network: in which the weights belong; it is changed.
        weights: their file.
        sites: the new one's name, in a list.
        rank: of the change of each convolution.
        device: where the network is put; it stays where it is if None.

    Returns:
        The network, ready to be trained.

    Raises:
        ValueError: not exactly one site is named, or what `personalized_network` and `add_site` refuse.
    """
    if len(sites) != 1:
        raise ValueError(f"one site is added at a time, got {', '.join(sites)}")
    network = personalized_network(network, weights)
    add_site(network, sites[0], rank=rank)
    return network.train().to(device)
