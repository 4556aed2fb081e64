"""What Stage 1 and Stage 3 share: tiles reach the network with their seeds and places, and come back in place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from axs_lib.errors import InputError
from axs_lib.terramind.adapters import SarAdapter
from axs_lib.terramind.sampler import TRAIN_TIMESTEPS
from axs_lib.terramind.tiles import (
    Sampling,
    check_training_size,
    mean_and_spread,
    network_side,
    run_tiled,
    to_network,
    training_start,
)

LAYOUT = SimpleNamespace(multiple=32, min_side=64, max_side=256)


def coordinates(batch: int, height: int, width: int) -> Tensor:
    """An image whose pixels say where they are, and in which sample."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).float().repeat(batch, 1, 1, 1)
    image[:, 2] += torch.arange(batch)[:, None, None]
    return image


@pytest.mark.parametrize("size", [(8, 8), (64, 200), (256, 256), (257, 30), (300, 500)])
def test_tiles_come_back_in_place(size: tuple[int, int]) -> None:
    image = coordinates(2, *size)

    def network(tiles: list[Tensor], seeds: Tensor, origins: Tensor) -> Tensor:
        first, second = tiles
        assert torch.equal(second, first * 2)
        assert max(first.shape[-2:]) <= 256 and len(first) <= 3
        assert torch.equal(
            origins - torch.tensor([100, 7]), first[:, :2, 0, 0].long()
        )  # the scene coordinate
        assert torch.equal(seeds, first[:, 2, 0, 0].long() + 40)
        return torch.cat([first, second], dim=1)

    seeds = torch.tensor([40, 41])
    layers = run_tiled(network, [image, image * 2], seeds, side=256, origin=(100, 7), batch_size=3)
    assert layers.shape == (2, 6, *size)
    torch.testing.assert_close(layers, torch.cat([image, image * 2], dim=1), atol=1e-3, rtol=1e-6)


def test_every_image_may_have_an_origin_of_its_own() -> None:
    image = coordinates(2, 300, 40)
    corners = torch.tensor([[0, 0], [2**40, -5]])

    def network(tiles: list[Tensor], seeds: Tensor, origins: Tensor) -> Tensor:
        sample = tiles[0][:, 2, 0, 0].long()
        assert torch.equal(origins, corners[sample] + tiles[0][:, :2, 0, 0].long())
        return tiles[0]

    run_tiled(network, [image], torch.zeros(2, dtype=torch.int64), side=256, origin=corners, batch_size=3)


def test_tiles_of_one_shape_go_together() -> None:
    counts: list[int] = []

    def network(tiles: list[Tensor], seeds: Tensor, origins: Tensor) -> Tensor:
        counts.append(len(tiles[0]))
        return tiles[0]

    run_tiled(network, [coordinates(5, 16, 16)], torch.zeros(5, dtype=torch.int64), side=256, batch_size=2)
    assert counts == [2, 2, 1]


@pytest.mark.parametrize(
    ("height", "width", "side"), [(8, 8, 64), (64, 20, 64), (65, 20, 96), (120, 120, 128), (256, 1, 256)]
)
def test_the_network_sees_whole_multiples(height: int, width: int, side: int) -> None:
    assert network_side(LAYOUT, height, width) == side  # type: ignore[arg-type]


def test_filled_padded_and_z_scored() -> None:
    adapter = SarAdapter([-10.0, -20.0], [2.0, 4.0])
    image = torch.full((1, 2, 8, 8), -12.0)
    image[:, :, 2, 3] = torch.nan
    valid = torch.isfinite(image).all(1, keepdim=True)
    z = to_network(image, valid, 32, adapter, standardize=True)
    assert z.shape == (1, 2, 32, 32)
    torch.testing.assert_close(z[0, :, 0, 0], torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(z, z[..., :1, :1].expand_as(z))
    nothing = to_network(image * torch.nan, torch.zeros_like(valid), 32, adapter, standardize=True)
    assert torch.equal(nothing, torch.zeros_like(nothing))  # the mean, where nothing is known
    assert torch.equal(to_network(z, z[:, :1] == z[:, :1], 32, adapter, standardize=False), z)


@pytest.mark.parametrize(
    "options", [{"ensemble_size": 0}, {"batch_size": 0}, {"temperature": 0.0}, {"temperature": float("nan")}]
)
def test_impossible_sampling(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Sampling(**options)  # type: ignore[arg-type]


def test_mean_and_spread() -> None:
    members = [torch.zeros(2, 3), torch.full((2, 3), 2.0)]
    mean, spread = mean_and_spread(members)
    assert torch.equal(mean, torch.ones(2, 3))
    torch.testing.assert_close(spread, torch.full((2, 3), 2.0**0.5))
    mean, spread = mean_and_spread(members[1:])
    assert torch.equal(mean, members[1]) and not spread.any()


def test_training_size() -> None:
    assert check_training_size(LAYOUT, torch.zeros(1, 2, 256, 40)) == (256, 40)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"257x40.*at most 256"):
        check_training_size(LAYOUT, torch.zeros(1, 2, 257, 40))  # type: ignore[arg-type]


def test_where_a_differentiable_pass_starts() -> None:
    clean = torch.ones(64, 4, 16, 16)
    x_t, t = training_start(clean, training=False)
    assert (t == TRAIN_TIMESTEPS - 1).all()
    assert abs(float(x_t.mean())) < 0.15  # nothing of the clean image is left
    assert torch.equal(x_t, training_start(clean, training=False)[0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_t, t = training_start(clean, training=True)
        pure, last = training_start(clean, training=True, noised=False)
    assert 16 < int((t == TRAIN_TIMESTEPS - 1).sum()) < 48
    assert t.unique().numel() > 16
    early = t < 200
    assert float(x_t[early].mean()) > 0.5  # an early step still shows the image
    assert (last == TRAIN_TIMESTEPS - 1).all() and abs(float(pure.mean())) < 0.05


def test_an_image_that_is_one_tile_comes_back_bit_for_bit() -> None:
    layers = torch.randn(5, 2, 40, 60, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(5)
    out = run_tiled(
        lambda _, which, __: layers[which], [coordinates(5, 40, 60)], numbers, side=256, batch_size=2
    )
    assert torch.equal(out, layers)
