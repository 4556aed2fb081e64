"""What is kept beside a weight is made when it must be, and lives no longer; room between steps is used again."""

from __future__ import annotations

import gc
import threading

import torch

from axs_lib.terramind.kept import KeptByWeight
from axs_lib.terramind.rooms import Rooms


def test_it_is_made_anew_for_another_key_or_another_value() -> None:
    kept, weight, made = KeptByWeight(), torch.ones(3), []

    def get(key: object) -> torch.Tensor:
        def make() -> torch.Tensor:
            made.append(key)
            return 2.0 * weight

        return kept.get(weight, key, make)

    first = get("a")
    assert get("a") is first and made == ["a"]
    assert get("b") is not first and made == ["a", "b"]
    get("a")
    assert made == ["a", "b", "a"] and len(kept) == 1
    weight.mul_(3.0)
    assert torch.equal(get("a"), torch.full((3,), 6.0))
    kept.forget(weight)
    assert weight not in kept
    kept.forget(weight)
    get("a")
    assert len(made) == 5


def test_it_lives_as_long_as_its_weight() -> None:
    kept, weight = KeptByWeight(), torch.ones(3)
    kept.get(weight, None, lambda: torch.zeros(1))
    assert weight in kept
    del weight
    gc.collect()
    assert len(kept) == 0


def test_a_weight_of_an_inference_mode_is_never_trusted() -> None:
    kept, made = KeptByWeight(), []
    with torch.inference_mode():
        weight = torch.ones(3)
        for _ in range(2):
            kept.get(weight, None, lambda: made.append(1) or torch.zeros(1))
    assert made == [1, 1] and weight not in kept


def test_room_is_used_again_within_a_thread() -> None:
    rooms = Rooms()
    first = rooms.take(0, 4, 5)
    assert rooms.take(0, 2, 3).data_ptr() == first.data_ptr() != rooms.take(1, 4, 5).data_ptr()
    assert rooms.take(0, 6, 5).shape == (6, 5)  # a larger one
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(rooms.take(0, 6, 5).data_ptr()))
    thread.start()
    thread.join()
    assert other != [rooms.take(0, 6, 5).data_ptr()]


def test_room_taken_in_inference_mode_serves_outside() -> None:
    rooms = Rooms()
    with torch.inference_mode():
        rooms.take(0, 3).fill_(1.0)
    assert torch.equal(rooms.take(0, 3).mul_(2.0), torch.full((3,), 2.0))
