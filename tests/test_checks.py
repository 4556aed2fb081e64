"""The door: what cannot be right is refused with what was seen, what is expected and how to fix it."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from axs_lib.checks import (
    RangeWarning,
    check_count,
    check_model,
    check_number,
    check_optical,
    check_pair,
    check_result,
    check_sar,
)
from axs_lib.errors import AxionError, InputError
from tests.models import plausible_pair, random_nano


@pytest.mark.parametrize(
    ("s1", "opt_v2", "seen", "fix"),
    [
        (torch.zeros(1, 3, 64, 64), None, r"\(1, 3, 64, 64\)", "VV, VH"),
        (None, torch.zeros(1, 12, 64, 64), r"\(1, 12, 64, 64\)", "B02, B03, B04, B08"),
        (torch.zeros(64, 64), None, r"\(64, 64\)", r"\(2, H, W\)"),
        (None, torch.full((1, 4, 64, 32), 900.0), "64x32", "one grid"),
        (None, torch.full((2, 4, 64, 64), 900.0), "2", "one SAR tile"),
        (None, torch.full((4, 64, 64), 900.0), r"\(4, 64, 64\)", "unsqueeze"),
        (torch.zeros(0, 2, 64, 64), torch.zeros(0, 4, 64, 64), r"\(0, 2, 64, 64\)", "at least one"),
        (torch.zeros(1, 2, 7, 64), torch.zeros(1, 4, 7, 64), "7x64", "8x8"),
        (torch.zeros(1, 2, 64, 64, dtype=torch.complex64), None, "complex64", "log10"),
        (torch.full((1, 2, 64, 64), -torch.inf), None, "infinite", "NaN"),
        (None, torch.full((1, 4, 64, 64), torch.inf), "infinite", "NaN"),
        (None, torch.zeros(1, 4, 64, 64, dtype=torch.uint8), "uint8", "DN"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_wrong_structure_always_raises(
    s1: torch.Tensor | None, opt_v2: torch.Tensor | None, seen: str, fix: str, force: bool
) -> None:
    good = plausible_pair(1)
    with pytest.raises(InputError, match=seen) as caught:
        check_pair(good[0] if s1 is None else s1, good[1] if opt_v2 is None else opt_v2, force=force)
    assert caught.match(fix)


def one_pixel(image: torch.Tensor, value: float) -> torch.Tensor:
    image[..., 3, 3] = value
    return image


RANGES = [
    ("linear power", lambda s1, opt: (10 ** (s1 / 10), opt), r"log10"),
    ("z-scored SAR", lambda s1, opt: ((s1 + 12) / 5, opt), "standardize=False"),
    ("reflectance", lambda s1, opt: (s1, opt / 10_000), "multiply by 10000"),
    ("z-scored optical", lambda s1, opt: (s1, (opt - 1000) / 2000), "standardize=False"),
    ("beyond 16 bit", lambda s1, opt: (s1, opt * 100), "65535"),
    ("negative", lambda s1, opt: (s1, opt - 1500), "DN"),
    ("percent", lambda s1, opt: (s1, opt / 100), "multiply by 100"),
    ("one nodata of SAR", lambda s1, opt: (one_pixel(s1, -9999.0), opt), "NaN"),
    ("one nodata of opt_v2", lambda s1, opt: (s1, one_pixel(opt, -9999.0)), "NaN"),
]


@pytest.mark.parametrize(("case", "change", "fix"), RANGES, ids=[r[0] for r in RANGES])
def test_implausible_ranges_raise_from_files_and_warn_from_tensors(case: str, change: object, fix: str) -> None:
    s1, opt_v2 = change(*plausible_pair(1))  # type: ignore[operator]
    with pytest.raises(InputError, match=fix.replace("standardize=False", "does not look like")) as caught:
        check_pair(s1, opt_v2, source="file")
    assert caught.match("seen") and caught.match("--force") and "model" not in str(caught.value)
    with pytest.warns(RangeWarning, match=fix):
        check_pair(s1, opt_v2)
    with warnings.catch_warnings(action="error"):
        check_pair(s1, opt_v2, source="file", force=True)
        check_pair(s1, opt_v2, standardize=False)


def test_a_warning_is_shown_once_a_place() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for seed in range(3):
            s1, opt_v2 = plausible_pair(1, seed=seed)
            check_pair(s1, opt_v2 / 10_000)
    assert len(shown) == 1


@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    batch=st.integers(1, 3),
    level=st.floats(-25, -5),
    dn=st.floats(200, 9000),
    holes=st.floats(0, 1),
)
def test_plausible_input_passes_silently(
    height: int, width: int, batch: int, level: float, dn: float, holes: float
) -> None:
    random = torch.Generator().manual_seed(height * width)
    s1 = level + torch.randn(batch, 2, height, width, generator=random)
    opt_v2 = (dn + 20 * torch.randn(batch, 4, height, width, generator=random)).clamp(101, 65535)
    opt_v2[torch.rand(opt_v2.shape, generator=random) < holes] = torch.nan
    with warnings.catch_warnings(action="error"):
        pair = check_pair(s1, opt_v2, source="file")
    shapes = (pair.s1.shape, pair.opt_v2.shape, pair.trust.shape)
    assert shapes == (s1.shape, opt_v2.shape, (batch, 1, height, width))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (1, 1, 16, 16), (2, 16, 16), (16, 16), (1, 16, 16)])
def test_trust_shapes(shape: tuple[int, ...]) -> None:
    s1, opt_v2 = plausible_pair(2, 16, 16)
    trust = torch.zeros(shape)
    trust[..., :8] = 1.0
    pair = check_pair(s1, opt_v2, trust=trust)
    assert pair.trust.shape == (2, 1, 16, 16) and pair.trust[..., :8].all() and not pair.trust[..., 8:].any()
    for wrong, message in (
        (torch.ones(3, 1, 16, 16), "trust has shape"),
        (torch.ones(2, 1, 16, 8), "trust has shape"),
        *((torch.ones(odd), "trust has shape") for odd in ((), (16,), (1, 16), (16, 1), (1, 1))),
        (torch.full((16, 16), 2.0), r"0\.\.1"),
        (torch.full((16, 16), torch.nan), r"0\.\.1"),
    ):
        with pytest.raises(InputError, match=message):
            check_pair(s1, opt_v2, trust=wrong)


def test_sar_alone_is_checked_as_in_a_pair() -> None:
    s1, _ = plausible_pair(1)
    s1[0, 0, 0, 0] = torch.nan
    checked = check_sar(s1[0].double())
    assert checked.unbatched
    assert checked.image.shape == (1, 2, 64, 64) and checked.image.dtype == torch.float32
    assert torch.equal(checked.image.nan_to_num(), s1.nan_to_num())
    with pytest.warns(RangeWarning, match="linear power"):
        check_sar(10 ** (s1 / 10))
    check_sar(10 ** (s1 / 10), standardize=False)
    for wrong, message in (
        (torch.full((1, 4, 64, 64), -10.0), "VV, VH"),
        (torch.full((0, 2, 64, 64), -10.0), "empty"),
        (torch.full((2, 9, 7), -10.0), "9x7"),
        (torch.full((2, 8, 8), -torch.inf), "infinite"),
    ):
        with pytest.raises(InputError, match=message):
            check_sar(wrong)


def test_the_device_and_the_precision_are_named() -> None:
    model = random_nano()
    with pytest.raises(InputError, match=r"model is on cpu and the inputs on meta.*s1.to\('cpu'\)"):
        check_model(torch.zeros(1, device="meta"), model)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(InputError, match=f"{dtype}.*use_precision"):
            model.to(dtype).ground(*plausible_pair(1))
    model.float().use_precision(torch.bfloat16)
    check_model(torch.zeros(1), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.to("meta"), "meta device"),
        (lambda image: FakeTensorMode().from_tensor(image), "meta device"),
        (lambda image: image.to_sparse(), r"layout torch\.sparse_coo.*to_dense"),
        (lambda image: torch.nested.as_nested_tensor([image]), r"dense tensor with values"),
        (lambda image: image.numpy(), r"ndarray.*torch\.from_numpy"),
        (lambda image: [1, 2], "is a list"),
        (lambda image: None, "is a NoneType"),
    ],
)
def test_tensors_without_plain_values_are_refused(change: Any, message: str) -> None:
    s1, opt_v2 = plausible_pair(1)
    for pair in ((change(s1), opt_v2), (s1, change(opt_v2))):
        with pytest.raises(InputError, match=message):
            check_pair(*pair)
    with pytest.raises(InputError, match=message):
        check_sar(change(s1))
    if change(s1) is not None:  # which is no trust map at all
        with pytest.raises(InputError, match="trust"):
            check_pair(s1, opt_v2, trust=change(torch.ones(64, 64)))


@pytest.mark.parametrize(("value", "seen"), [(-1e39, "infinite values"), (-3.4e38, r"values beyond 1e\+07")])
def test_values_that_no_image_holds_are_refused_in_any_unit(value: float, seen: str) -> None:
    s1, opt_v2 = (image.double() for image in plausible_pair(1))
    bad_s1, bad_opt = (one_pixel(image.clone(), value) for image in (s1, opt_v2))
    bad_s1[..., 5, 5] = bad_opt[..., 5, 5] = torch.nan
    for name, check, *images in (
        ("s1", check_pair, bad_s1, opt_v2),
        ("s1", check_sar, bad_s1),
        ("opt_v2", check_pair, s1, bad_opt),
        ("opt_v2", functools.partial(check_optical, name="opt_v2"), bad_opt),
    ):
        with pytest.raises(InputError, match=f"{name} contains {seen}"):
            check(*images, standardize=False)


def test_another_default_dtype_is_refused() -> None:
    pair = plausible_pair(1)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default dtype is torch\.float64"):
            check_pair(*pair)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", ["3", 1.5, None, 0, -1, True, torch.ones(2), pytest.param(10**5000, id="huge")])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"ensemble_size is .*; expected an integer of at least 1"):
        check_count("ensemble_size", value)
    assert check_count("ensemble_size", np.int32(2)) == check_count("ensemble_size", torch.tensor(2)) == 2


@pytest.mark.parametrize("value", ["x", "0.5", None, float("nan"), 1.5, -0.1, torch.ones(2), True])
def test_what_is_no_number_in_range_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"strength is .*; expected a share"):
        check_number("strength", value, 0, 1, "a share")
    assert check_number("strength", np.float32(0.5), 0, 1, "a share") == 0.5


def test_a_result_that_is_no_number_is_an_error_and_nodata_none() -> None:
    image = torch.ones(1, 4, 8, 8)
    image[:, :, 0] = torch.nan
    nodata = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(AxionError, match="opt_v3 has 8 pixels that are not finite although the inputs are"):
        check_result("opt_v3", image, nodata)
    nodata[:, :, 0] = True
    check_result("opt_v3", image, nodata)
