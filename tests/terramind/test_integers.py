"""Layers in integers: nearly the same result, token by token and image by image, and no way to save them by mistake."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from axs_lib.errors import InputError
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind import integers as module
from axs_lib.terramind.integers import (
    IntegerConv2d,
    IntegerLinear,
    gains_by_words,
    multiplies_bytes,
    round_convolutions,
    round_linears,
)
from axs_lib.terramind.layers import speed_up
from tests.models import plausible_pair
from tests.published import wide_unet

needs_bytes = pytest.mark.skipif(not multiplies_bytes(), reason="the processor does not multiply bytes")


@pytest.fixture(params=[True, False], ids=["bytes", "integers"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both products: oneDNN's of bytes, and PyTorch's own where the processor has none."""
    if request.param and not multiplies_bytes():
        pytest.skip("the processor does not multiply bytes")
    monkeypatch.setattr(module, "multiplies_bytes", lambda: request.param)


def assert_independent(layer: nn.Module, x: torch.Tensor) -> None:
    """What is beside it in the batch, bright or broken, changes no bit of a sample's result."""
    together = layer(x)
    x[0] *= 1000.0
    x[1] = torch.nan
    changed = layer(x)
    assert torch.equal(changed[2:], together[2:])
    assert changed[1].isnan().all() and changed[0].isfinite().all()


@pytest.fixture
def linear() -> nn.Linear:
    layer = nn.Linear(256, 96).requires_grad_(False)
    layer.weight *= torch.logspace(-2, 1, 96)[:, None]  # channels of very different size
    return layer


@pytest.fixture(autouse=True)
def _same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("_way")
@torch.no_grad()
def test_it_is_the_layer_to_a_hundredth_in_every_channel(linear: nn.Linear) -> None:
    assert_close(IntegerLinear(linear), linear, tokens_of_any_size(), 0.02)


@needs_bytes
@torch.no_grad()
def test_with_16_bits_it_is_the_layer_to_a_ten_thousandth(linear: nn.Linear) -> None:
    x = tokens_of_any_size()
    assert_close(IntegerLinear(linear, 2), linear, x, 1e-4)
    with pytest.raises(AssertionError):  # which 8 bits are not
        assert_close(IntegerLinear(linear, 1), linear, x, 1e-3)


def tokens_of_any_size() -> torch.Tensor:
    return torch.randn(3, 50, 256) * torch.logspace(-3, 2, 50)[:, None]


def assert_close(rough: IntegerLinear, linear: nn.Linear, x: torch.Tensor, relative: float) -> None:
    """RMS of every channel over tokens, and of every token over channels."""
    exact = linear(x) - linear.bias
    error = rough(x) - linear.bias - exact
    for over in ((0, 1), (0, 2)):
        assert (error.square().mean(over) < relative**2 * exact.square().mean(over)).all()


@pytest.mark.usefixtures("_way")
@torch.no_grad()
def test_a_token_depends_on_no_other(linear: nn.Linear) -> None:
    assert_independent(IntegerLinear(linear), torch.randn(4, 7, 256))


@pytest.mark.usefixtures("_way")
@torch.no_grad()
def test_nothing_in_gives_the_bias(linear: nn.Linear) -> None:
    assert torch.equal(IntegerLinear(linear)(torch.zeros(2, 256)), linear.bias.expand(2, -1))
    bare = nn.Linear(16, 8, bias=False)
    assert not IntegerLinear(bare)(torch.zeros(1, 16)).any()


@torch.no_grad()
def test_nanos_image_changes_by_less_than_its_rounding() -> None:
    exact = build_stage3_model(variant="nano", timesteps=1)
    rough = copy.deepcopy(exact)
    rough.terramind_generator.use_precision(torch.int8)
    assert any(isinstance(module, IntegerLinear) for module in rough.terramind_generator.core.modules())
    s1, opt_v2 = plausible_pair(2, 120, 120)
    before, after = exact.ground(s1, opt_v2), rough.ground(s1, opt_v2)
    assert not torch.equal(before.proposal, after.proposal)
    assert (before.proposal - after.proposal).square().mean().sqrt() < 10.0  # DN
    assert (before.image - after.image).square().mean().sqrt() < 1.0


def test_of_nano_only_encoder_and_decoder_are_rounded() -> None:
    generator = build_stage3_model(variant="nano").terramind_generator
    before = {name: value.clone() for name, value in generator.detokenizer.state_dict().items()}
    generator.use_precision(torch.int8)
    assert all(torch.equal(value, before[name]) for name, value in generator.detokenizer.state_dict().items())
    assert round_linears(generator.core.encoder) == 0
    with pytest.raises(InputError, match="save the model before"):
        generator.state_dict()


@pytest.fixture
def conv() -> nn.Conv2d:
    layer = nn.Conv2d(192, 200, 3, padding=1).requires_grad_(False)
    layer.weight *= torch.logspace(-2, 1, 200)[:, None, None, None]
    return layer


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize("after_silu", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("bytes_", "relative"), [(1, 0.02), (2, 3e-4)], ids=["8 bits", "16 bits"])
def test_it_is_the_convolution(
    conv: nn.Conv2d, after_silu: bool, stride: int, bytes_: int, relative: float
) -> None:
    """In every channel and image, with borders and images of very different brightness in a batch."""
    conv.stride = (stride, stride)
    x = torch.randn(3, 192, 20, 13)
    x = F.silu(x * 3) if after_silu else x * torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    bias = conv.bias[:, None, None]  # type: ignore[index]
    exact = conv(x) - bias
    error = IntegerConv2d(conv, bytes_, after_silu=after_silu)(x) - bias - exact
    for over in ((0, 2, 3), (1, 2, 3)):
        assert (error.square().mean(over) < relative**2 * exact.square().mean(over)).all()


@needs_bytes
@torch.no_grad()
def test_a_silus_values_are_rounded_finer_where_that_is_known(conv: nn.Conv2d) -> None:
    x = F.silu(2.0 * torch.randn(2, 192, 16, 16))
    error = {
        known: (IntegerConv2d(conv, after_silu=known)(x) - conv(x)).square().mean() for known in (True, False)
    }
    assert error[True] < error[False]
    dark = -torch.rand(1, 192, 8, 8) * 0.278  # nothing above 0: the bytes below it must do
    error = (IntegerConv2d(conv, after_silu=True)(dark) - conv(dark)).square().mean()
    assert error < (0.05**2) * conv(dark).square().mean()


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize("bytes_", [1, 2])
def test_an_image_depends_on_no_other(conv: nn.Conv2d, bytes_: int) -> None:
    assert_independent(IntegerConv2d(conv, bytes_), torch.randn(4, 192, 8, 8))


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize("bytes_", [1, 2])
def test_a_shift_and_an_image_are_added(conv: nn.Conv2d, bytes_: int) -> None:
    x, shift, onto = torch.randn(2, 192, 8, 8), torch.randn(200), torch.randn(2, 200, 8, 8)
    rough, before = IntegerConv2d(conv, bytes_), onto.clone()
    torch.testing.assert_close(rough(x, shift, onto), rough(x) + shift[:, None, None] + onto)
    assert torch.equal(onto, before)


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize("bytes_", [1, 2])
def test_compiled_they_are_the_same(conv: nn.Conv2d, linear: nn.Linear, bytes_: int) -> None:
    conv.stride = (2, 2)
    image, onto, rows = torch.randn(2, 192, 9, 16), torch.randn(2, 200, 5, 8), torch.randn(2, 7, 256)
    rough, product = IntegerConv2d(conv, bytes_), IntegerLinear(linear, bytes_)
    options: dict[str, Any] = {"backend": "aot_eager", "fullgraph": True}
    assert torch.equal(torch.compile(rough, **options)(image, None, onto), rough(image, None, onto))
    assert torch.equal(torch.compile(product, **options)(rows), product(rows))


@needs_bytes
def test_another_device_is_refused(conv: nn.Conv2d, linear: nn.Linear) -> None:
    """As after use_precision(torch.bfloat16) on a CPU, then moved to a GPU."""
    for layer, size in ((IntegerConv2d(conv, 2), (1, 192, 8, 8)), (IntegerLinear(linear, 2), (3, 256))):
        with pytest.raises(InputError, match="move it there"):
            layer.to("meta")(torch.zeros(size, device="meta"))


@needs_bytes
def test_rounded_in_inference_mode_weights_are_packed_once(
    conv: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        rough, x = IntegerConv2d(conv), torch.randn(1, 192, 8, 8)
        rough(x)
        monkeypatch.delattr(module, "_packed_kernel")
        rough(x)


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize("bytes_", [1, 2])
def test_sizes_may_alternate(conv: nn.Conv2d, bytes_: int) -> None:
    """Weights are packed for the size of the input, anew where it changes."""
    rough, large, small = IntegerConv2d(conv, bytes_), torch.randn(3, 192, 16, 16), torch.randn(1, 192, 8, 8)
    expected = rough(large)
    assert rough(small).shape == (1, 200, 8, 8)
    assert torch.equal(rough(large), expected)


@needs_bytes
@torch.no_grad()
@pytest.mark.parametrize(("bytes_", "relative"), [(1, 0.1), (2, 1e-3)], ids=["8 bits", "16 bits"])
def test_the_wide_convolutions_of_a_unet_are_rounded_but_the_last_and_with_8_bits_the_first(
    bytes_: int, relative: float
) -> None:
    exact = speed_up(wide_unet())
    rough = copy.deepcopy(exact)
    count = round_convolutions(rough, bytes_)
    rounded = {name: part for name, part in rough.named_modules() if isinstance(part, IntegerConv2d)}
    projections = [part for part in rough.modules() if isinstance(part, IntegerLinear)]
    assert count == len(rounded) + len(projections) and len(rounded) >= 8 and len(projections) >= 4
    assert not any(name.startswith("out.") for name in rounded)
    assert any(name.startswith("input_blocks.0.") for name in rounded) == (bytes_ == 2)
    after_silu = {name for name, part in rounded.items() if part.after_silu}
    assert after_silu == {name for name in rounded if "_layers." in name}
    assert round_convolutions(rough) == 0
    x, t, codes = torch.randn(2, 12, 64, 64), torch.tensor([999, 300]), torch.randn(2, 3, 4, 4)
    before, after = exact(x, t, codes), rough(x, t, codes)
    assert 0.0 < (before - after).std() < relative * before.std()
    assert torch.equal(copy.deepcopy(rough)(x, t, codes), after)
    assert (pickle.loads(pickle.dumps(rough))(x, t, codes) - after).std() < relative * before.std()
    with pytest.raises(InputError, match="for inference alone"):
        rough.state_dict()


@needs_bytes
@torch.no_grad()
def test_the_finest_grid_alone_can_be_rounded() -> None:
    exact = speed_up(wide_unet())
    rough = copy.deepcopy(exact)
    assert 0 < round_convolutions(rough, 2, finest_only=True) < round_convolutions(copy.deepcopy(exact), 2)
    sides: dict[str, int] = {}
    for name, part in exact.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(
                lambda _, inputs, out, name=name: sides.update(
                    {name: max(inputs[0].shape[-1], out.shape[-1])}
                )
            )
    exact(torch.randn(1, 12, 64, 64), torch.tensor([999]), torch.randn(1, 3, 4, 4))
    rounded = {name for name, part in rough.named_modules() if isinstance(part, IntegerConv2d)}
    assert {sides[name] for name in rounded} == {16}
    # The upsampling's convolution writes that grid from smooth pixels, and the last one writes the image.
    left = {name for name, side in sides.items() if side == 16} - rounded
    assert all(name.startswith("out.") or name.endswith(".conv") for name in left)


@needs_bytes
@torch.no_grad()
def test_bfloat16_keeps_the_finest_grid_nearly_exact_where_that_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, t, codes = torch.randn(1, 12, 64, 64), torch.tensor([999]), torch.randn(1, 3, 4, 4)
    errors = {}
    for gains in (True, False):
        monkeypatch.setattr("axs_lib.terramind.generator.gains_by_words", lambda gains=gains: gains)
        generator = build_stage3_model(variant="nano").terramind_generator
        generator.detokenizer = speed_up(wide_unet())
        expected = generator.detokenizer(x, t, codes)
        generator.use_precision(torch.bfloat16)
        errors[gains] = (
            generator.denoise_once(x, t, codes) - expected
        ).square().mean().sqrt() / expected.std()
        assert any(isinstance(part, IntegerConv2d) for part in generator.modules()) == gains
    assert 0 < errors[True] < 0.6 * errors[False]


def test_without_products_of_bytes_the_unet_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bytes", lambda: False)
    unet = speed_up(wide_unet())
    assert round_convolutions(unet) == 0
    assert not any(isinstance(part, IntegerConv2d) for part in unet.modules())


@pytest.mark.parametrize("amx", [True, False])
@torch.no_grad()
def test_16_bits_are_used_only_where_they_gain(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not multiplies_bytes():
        pytest.skip("the processor does not multiply bytes")
    monkeypatch.setattr("axs_lib.terramind.generator.gains_by_words", lambda: amx)
    model = build_stage3_model(variant="nano", timesteps=1)
    s1, opt_v2 = plausible_pair(1, 120, 120)
    before = model.ground(s1, opt_v2)
    model.terramind_generator.use_precision(torch.int16)
    after = model.ground(s1, opt_v2)
    assert any(isinstance(part, IntegerLinear) for part in model.modules()) == amx
    assert torch.equal(before.proposal, after.proposal) != amx
    assert (before.proposal - after.proposal).abs().max() < 1.0  # DN


def test_gains_need_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported in (True, False):
        gains_by_words.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported)
        assert gains_by_words() == (supported and multiplies_bytes())
    gains_by_words.cache_clear()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not gains_by_words()
    gains_by_words.cache_clear()


@pytest.mark.parametrize("lacking", ["vnni", "layers", "right"])
def test_only_exact_products_of_bytes_are_used(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the instructions some processors clip sums of products: they must not pass."""
    if lacking == "vnni":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    elif lacking == "layers":
        monkeypatch.setattr(module, "_packed_matrix", lambda *_: torch.ops.onednn.no_such_layer())
    else:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
        monkeypatch.setattr(module, "_byte_product", lambda *_: torch.tensor(32767.0))
    multiplies_bytes.cache_clear()
    try:
        assert not multiplies_bytes()
    finally:
        multiplies_bytes.cache_clear()


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    model = build_stage3_model(variant="nano")
    model.terramind_generator.use_precision(torch.int8)
    with pytest.raises(InputError, match="for inference alone"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_cannot_be_is_refused() -> None:
    generator = build_stage3_model(variant="nano").terramind_generator
    with pytest.raises(InputError, match=r"expected torch\.bfloat16"):
        generator.use_precision(torch.int32)
    with pytest.raises(InputError, match=r"integers are for a CPU"):
        generator.to("meta").use_precision(torch.int8)
