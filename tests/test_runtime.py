"""Which numbers a forward pass computes in: chosen by the machine, refused in words where it cannot be."""

import pytest
import torch

from monai_ext.runtime import autocast, memory_format, wanted_dtype


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Says what the processor has, whatever the tests run on."""

    def has(*, avx512_bf16: bool = False, amx: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return has


@pytest.mark.parametrize(
    ("has", "expected"), [({}, None), ({"avx512_bf16": True}, torch.bfloat16), ({"amx": True}, torch.bfloat16)]
)
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(machine, has, expected):
    machine(**has)
    assert wanted_dtype("cpu", True) is expected
    assert wanted_dtype("cpu", False) is None


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_computes_in_bfloat16_where_it_does_not_have_to_emulate_it(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert wanted_dtype("cuda:1", True) is expected


def test_bfloat16_asked_for_by_name_is_used_on_any_machine(machine):
    machine()
    assert wanted_dtype("cpu", "bf16") is torch.bfloat16


def test_float16_is_for_gpus(machine):
    machine(avx512_bf16=True)
    assert wanted_dtype("cuda", "fp16") is torch.float16
    with pytest.raises(ValueError, match="amp fp16 is for CUDA, this is cpu: use true, bf16 or false"):
        wanted_dtype("cpu", "fp16")


@pytest.mark.parametrize("amp", ["float16", "True", None, 2])
def test_an_unknown_precision_is_refused_with_those_known(amp):
    with pytest.raises(ValueError, match=f"amp must be true, false, bf16 or fp16, got {amp!r}"):
        wanted_dtype("cpu", amp)


@pytest.mark.parametrize(("amp", "expected"), [("bf16", torch.bfloat16), (False, torch.float32)])
def test_autocast_is_what_was_asked_for_and_ends(amp, expected):
    convolution, image = torch.nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8)
    with autocast("cpu", amp):
        assert convolution(image).dtype is expected
    assert convolution(image).dtype is torch.float32


def test_no_autocast_around_a_call_is_switched_off():
    with torch.autocast("cpu", torch.bfloat16), autocast("cpu", False):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, torch.channels_last),
        ("cuda", None, torch.contiguous_format),
        ("cpu", torch.bfloat16, torch.contiguous_format),
    ],
)
def test_channels_come_last_for_tensor_cores(device, dtype, expected):
    assert memory_format(device, dtype) is expected
