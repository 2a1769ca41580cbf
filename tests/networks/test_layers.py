"""What networks share: an instance norm whose scale and shift are each image's own."""

import pytest
import torch
from torch import nn

from monai_ext.networks.layers import InstanceNorm, instance_norm


def test_it_is_torchs_instance_norm_with_its_gradients():
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5), nn.InstanceNorm2d(5, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    x, answer = torch.randn(3, 5, 6, 7), torch.randn(3, 5, 6, 7)
    made = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        y = norm(given)
        y.backward(answer)
        made.append((y, given.grad, norm.weight.grad, norm.bias.grad))
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)


def test_a_traced_graph_gives_the_same_to_any_batch():
    scale, shift = torch.rand(4, 3), torch.rand(4, 3)

    def norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return instance_norm(x, scale, shift)

    traced = torch.jit.trace(norm, (torch.rand(2, 3, 6, 5), scale[:2], shift[:2]))
    x = torch.rand(4, 3, 6, 5)
    torch.testing.assert_close(traced(x, scale, shift), norm(x, scale, shift))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_and_keeps_reduced_precision():
    x, scale, shift = torch.rand(2, 3, 8, 8), torch.rand(2, 3), torch.rand(2, 3)
    there = instance_norm(x.cuda(), scale.cuda(), shift.cuda())
    torch.testing.assert_close(there.cpu(), instance_norm(x, scale, shift), atol=1e-5, rtol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        assert instance_norm(x.cuda().bfloat16(), scale.cuda(), shift.cuda()).dtype == torch.bfloat16
