"""The one validator at the door: shapes, types, units and nodata of what a user hands in.

Wrong shapes, band counts, batch sizes and infinities always raise. Implausible *ranges* (linear-power SAR,
reflectance in 0-1, random numbers) raise where data comes from files, because a wrong unit there silently spoils a
product, and warn in the tensor API, where experiments are legitimate. NaN means nodata.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from axs_lib.bands import MOST_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import AxionError, InputError, listed
from axs_lib.nodata import valid_pixels

MIN_SIDE = 8
LEAST_DN = -2000.0  # dark pixels less the offset of 1000 lie above
LEAST_DB, MOST_DB = -150.0, 60.0  # of single pixels of radar
MOST = 1e7  # what no unit of an image reaches, only the nodata values of other software
_Z_SCORED = "; for z-scored input build the model with standardize=False"  # said where there is a model

Kind = TypeVar("Kind")


class Trust:
    """The values of a trust map: how a pixel of opt_v2 came to be."""

    UNKNOWN = 0.0  # nothing is known: the value is not looked at
    SAR_ONLY = 0.25  # estimated from the SAR alone: its colour was never observed
    ESTIMATE = 0.5  # an estimate of any other kind
    OBSERVED = 1.0  # observed: it comes back bit for bit


class RangeWarning(UserWarning):
    """Values have the right shape but do not look like dB or DN."""


@dataclass(frozen=True)
class CheckedPair:
    """A valid batch, NaN = nodata."""

    s1: Tensor  # (B, 2, H, W) float32
    opt_v2: Tensor  # (B, 4, H, W) float32 or float64
    trust: Tensor  # (B, 1, H, W) float32 in [0, 1]; ``Trust.ESTIMATE`` everywhere where none was given
    unbatched: bool  # whether the caller passed single tiles


class CheckedImage(NamedTuple):
    """(B, C, H, W), SAR in float32, NaN = nodata; and whether the caller passed a single tile."""

    image: Tensor
    unbatched: bool


def check_pair(
    s1: Tensor,
    opt_v2: Tensor,
    *,
    trust: Tensor | None = None,
    source: str = "tensor",
    standardize: bool = True,
    force: bool = False,
    name: str = "opt_v2",
) -> CheckedPair:
    """Validate SAR and optical inputs and bring them to one batched floating-point form.

    ``s1`` (B, 2, H, W) or (2, H, W) is VV and VH in dB, ``opt_v2`` (B, 4, H, W) or (4, H, W) B02 B03 B04 B08 in DN,
    ``trust`` (B, 1, H, W), (1, H, W) or (H, W) 1 = observed, 0 = unknown (what opt_v2 holds there is not looked at and
    becomes NaN); ``None`` is an estimate everywhere; ``name`` is what errors call opt_v2. Of source ``"file"``
    implausible ranges raise, of ``"tensor"`` they warn; without ``standardize`` (z-units) and with ``force`` they are
    not checked. Raises InputError: other shapes, bands, sizes or devices, no real numbers, infinities; or implausible
    ranges.
    """
    s1, opt_v2 = _as_image("s1", s1, SAR_BANDS), _as_image(name, opt_v2, OPTICAL_BANDS)
    if s1.ndim != opt_v2.ndim:
        raise InputError(
            f"s1 has shape {tuple(s1.shape)} and opt_v2 {tuple(opt_v2.shape)}; pass both batched (B, C, H, W) or both"
            " as one tile (C, H, W), e.g. with .unsqueeze(0)"
        )
    if s1.device != opt_v2.device:
        raise InputError(f"s1 is on {s1.device} and opt_v2 on {opt_v2.device}; move them to one device with .to()")
    unbatched = s1.ndim == 3
    if unbatched:
        s1, opt_v2 = s1[None], opt_v2[None]
    if s1.shape[0] != opt_v2.shape[0]:
        raise InputError(
            f"s1 holds {s1.shape[0]} tiles and opt_v2 {opt_v2.shape[0]}; pass one SAR tile for every optical tile"
        )
    if s1.shape[-2:] != opt_v2.shape[-2:]:
        raise InputError(
            f"s1 is {s1.shape[-2]}x{s1.shape[-1]} pixels and opt_v2 {opt_v2.shape[-2]}x{opt_v2.shape[-1]}; both must"
            " lie on one grid: warp the SAR to the optical grid first"
        )
    _check_pixels("s1", s1)
    certainty = _as_trust(trust, s1)
    if trust is not None:
        opt_v2 = opt_v2.masked_fill(certainty == 0, torch.nan)
    _check_finite("s1", s1, "dB")
    _check_finite(name, opt_v2, "DN")
    if standardize and not force:
        advice = _Z_SCORED if source == "tensor" else ""
        _report([_sar_range(s1, advice), _optical_range(name, opt_v2, advice)], source)
    return CheckedPair(s1.float(), opt_v2, certainty, unbatched)


def check_sar(s1: Tensor, *, standardize: bool = True) -> CheckedImage:
    """Validate SAR alone, as ``check_pair`` does; an implausible range is a warning."""
    s1 = _as_image("s1", s1, SAR_BANDS)
    batch = (s1[None] if s1.ndim == 3 else s1).float()
    _check_pixels("s1", batch)
    _check_finite("s1", batch, "dB")
    if standardize:
        _report([_sar_range(batch)])
    return CheckedImage(batch, s1.ndim == 3)


def check_optical(image: Tensor, name: str, *, standardize: bool = True) -> CheckedImage:
    """Validate an optical image of this name alone, as ``check_pair`` does; an implausible range is a warning."""
    image = _as_image(name, image, OPTICAL_BANDS)
    batch = image[None] if image.ndim == 3 else image
    _check_pixels(name, batch)
    _check_finite(name, batch, "DN")
    if standardize:
        _report([_optical_range(name, batch)])
    return CheckedImage(batch, image.ndim == 3)


def check_dn(name: str, image: Tensor) -> None:
    """Raise ``InputError`` for infinite values, and warn of a range that is not of DN; of images beside no model."""
    _check_finite(name, image, "DN")
    _report([_optical_range(name, image, "; bring them to DN, unless the place is that dark")])


def check_model(image: Tensor, model: nn.Module) -> None:
    """Raise ``InputError`` where an input is not where the model is, or the model as a whole not in float32."""
    kept = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    device = next(model.parameters()).device
    if image.device != device:
        raise InputError(
            f"the model is on {device} and the inputs on {image.device}; move them with s1.to({str(device)!r}), or the"
            f" model with model.to({str(image.device)!r})"
        )
    for dtype in {buffer.dtype for buffer in kept} - {torch.float32}:
        raise InputError(
            f"the model was built or brought to {dtype}; expected torch.float32: model.float(), and for a lower"
            " precision model.use_precision(torch.bfloat16), which leaves in float32 what must be"
        )


def find_device(device: object, name: str = "device") -> torch.device:
    """The device of this name, the CPU for ``None``; ``InputError`` where nothing can be computed there."""
    try:
        found = torch.device("cpu" if device is None else device)  # type: ignore[call-overload]
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        count = torch.cuda.device_count()
        there = "cpu" + (f" and cuda:0 to cuda:{count - 1}" if count else "; there is no CUDA GPU here")
        raise InputError(f"{name} {device!r} cannot be used; expected {there}") from error
    return found


def check_result(name: str, image: Tensor, nodata: Tensor) -> None:
    """Raise ``AxionError`` where an image (B, C, H, W) is not finite outside ``nodata``, (B, 1, H, W) bool."""
    wrong = ~(valid_pixels(image) | nodata)
    if bool(wrong.any()):
        raise AxionError(
            f"{name} has {int(wrong.sum())} pixels that are not finite although the inputs are: the weights are"
            " damaged, or the arithmetic overflows; use float32 (--dtype float32), or other weights"
        )


def shown(value: object) -> str:
    """A value for a message, its type where it is long; an integer of over 4300 digits has no text in Python."""
    if isinstance(value, int) and abs(value) > 2**99:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 and "\n" not in text else f"a {type(value).__name__}"


def check_count(name: str, value: object, least: int = 1, most: int = 2**63 - 1) -> int:
    """A whole number from ``least`` to ``most``; ``InputError`` for anything else, also truth values."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = None
    if number is None or not least <= number <= most:
        bounds = f"from {least} to {most}" if least < 0 or most < 2**63 - 1 else f"of at least {least}"
        raise InputError(f"{name} is {shown(value)}; expected an integer {bounds}")
    return number


def check_type(name: str, value: object, kind: type[Kind], expected: str) -> Kind:
    """The value, of this type; ``InputError`` that says what is ``expected`` for anything else."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is {shown(value)}; expected {expected}")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """One of the names; ``InputError`` for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}; expected one of {listed(choices)}")
    return value


def check_flag(name: str, value: object) -> bool:
    """True or False; ``InputError`` for anything else."""
    return check_type(name, value, bool, "True or False")


def check_number(name: str, value: object, low: float, high: float, expected: str) -> float:
    """A number from ``low`` to ``high`` as a float, else ``InputError`` that says what is ``expected``."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise InputError(f"{name} is {shown(value)}; expected {expected}")
    return number


def _check_pixels(name: str, image: Tensor) -> None:
    if image.numel() == 0:
        raise InputError(f"{name} has shape {tuple(image.shape)}: it is empty; pass at least one tile")
    if min(image.shape[-2:]) < MIN_SIDE:
        raise InputError(
            f"tiles are {image.shape[-2]}x{image.shape[-1]} px; expected at least {MIN_SIDE}x{MIN_SIDE}: cut larger"
            " tiles"
        )


def _check_finite(name: str, image: Tensor, unit: str) -> None:
    most = image.abs().amax()
    if not most < MOST and bool((image.abs() >= MOST).any()):  # NaN where there is nodata
        seen = "infinite values" if bool(image.float().isinf().any()) else f"values beyond {MOST:.0e}"
        raise InputError(
            f"{name} contains {seen}; expected {unit} with NaN for nodata (10*log10 of zero power gives"
            " -inf: set such pixels to NaN)"
        )


def _report(messages: list[str | None], source: str = "tensor") -> None:
    """Raise (files) or warn (tensors) about implausible ranges; a message ends in what was seen, in brackets."""
    for message in messages:
        if message and source == "file":
            raise InputError(f"{message}; pass --force (force=True) if the values are right as they are")
        if message:
            warnings.warn(message.partition(" [")[0], RangeWarning, stacklevel=5)


def check_tensor(name: str, value: object, example: str = "array") -> Tensor:
    """The value, a dense tensor of real numbers; ``InputError`` for anything else."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} is a {type(value).__name__}; expected a torch.Tensor, e.g. torch.from_numpy({example}) for NumPy"
            " data"
        )
    plain = value.layout is torch.strided and not (value.is_quantized or value.is_nested)
    if not plain or value.untyped_storage().device.type == "meta":  # also where the tensor itself says otherwise
        kind = "on the meta device, without values" if plain else f"of layout {value.layout}"
        raise InputError(f"{name} is a tensor {kind}; expected a dense tensor with values, e.g. by .to_dense()")
    if value.is_complex():
        raise InputError(f"{name} has dtype {value.dtype}; expected real numbers (for complex SAR: 20*log10(abs(x)))")
    return value


def _as_image(name: str, image: object, bands: tuple[str, ...]) -> Tensor:
    image = check_tensor(name, image)
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default dtype is {torch.get_default_dtype()}; expected torch.float32: call"
            " torch.set_default_dtype(torch.float32) before a model is built"
        )
    if image.dtype in (torch.bool, torch.uint8):
        raise InputError(f"{name} has dtype {image.dtype}; expected backscatter in dB, or DN (reflectance x 10000)")
    if image.ndim not in (3, 4) or image.shape[-3] != len(bands):
        shape = f"{len(bands)}, H, W)"
        raise InputError(f"{name} has shape {tuple(image.shape)}; expected (B, {shape} or ({shape}: {listed(bands)}")
    return image if image.dtype in (torch.float32, torch.float64) else image.float()


def _as_trust(trust: Tensor | None, s1: Tensor) -> Tensor:
    batch, _, height, width = s1.shape
    if trust is None:
        return torch.full((batch, 1, height, width), Trust.ESTIMATE, device=s1.device)
    trust = check_tensor("trust", trust, "mask")
    value = trust.to(device=s1.device, dtype=torch.float32)
    if value.ndim == 2:
        value = value[None]
    if value.ndim == 3:
        value = value[:, None] if value.shape[0] == batch and batch > 1 else value[None]
    if value.ndim != 4 or value.shape[1:] != (1, height, width) or len(value) not in (1, batch):
        raise InputError(
            f"trust has shape {tuple(trust.shape)}; expected (B, 1, H, W) = ({batch}, 1, {height}, {width}) or"
            f" ({height}, {width})"
        )
    value = value.expand(batch, 1, height, width)
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise InputError("trust holds NaN or values outside 0..1; expected 1 = observed, 0 = unknown, between = partly")
    return value


def _sar_range(s1: Tensor, advice: str = _Z_SCORED) -> str | None:
    values = s1 if s1.sum().isfinite() else s1[torch.isfinite(s1)]
    if values.numel() == 0:
        return None
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    if low >= 0 and high > 0:
        return (
            "s1 has no negative value, so it looks like linear power (or DN), not dB; convert with"
            f" s1_db = torch.where(s1 > 0, 10 * torch.log10(s1), torch.nan) [seen {low:.4g} to {high:.4g}]"
        )
    if not LEAST_DB <= low <= high <= MOST_DB:
        return (
            f"s1 has values that are no backscatter in dB, perhaps nodata: set them to NaN{advice}"
            f" [seen {low:.4g} to {high:.4g}, expected {LEAST_DB:.0f} to {MOST_DB:.0f}]"
        )
    if not -45.0 <= mean <= -2.0:
        return (
            f"s1 does not look like backscatter in dB (expected a mean between -45 and -2 dB){advice}"
            f" [seen mean {mean:.4g}, range {low:.4g} to {high:.4g}]"
        )
    return None


def _optical_range(name: str, image: Tensor, advice: str = _Z_SCORED) -> str | None:
    values = image if image.sum().isfinite() else image[torch.isfinite(image)]
    if values.numel() == 0:
        return None
    low, high = map(float, values.aminmax())
    seen = f" [seen {low:.4g} to {high:.4g}]"
    if low >= 0 and high <= MOST_REFLECTANCE:
        return f"{name} looks like reflectance in 0-1, not DN; multiply by 10000" + seen
    if high <= 20.0:
        return f"{name} does not look like DN (reflectance x 10000): no value is above 20{advice}{seen}"
    if high <= 100.0 and float((values % 1 != 0).float().mean()) > 0.5:  # dark water has whole DN
        return f"{name} looks like reflectance in percent, not DN; multiply by 100" + seen
    if low < LEAST_DN:
        return f"{name} has values far below 0, perhaps nodata: set them to NaN" + seen
    if high > 65_535.0 or (low < 0 and float((values < 0).float().mean()) > 0.01):
        return f"{name} does not look like DN (reflectance x 10000, 1 to 65535)" + seen
    return None
