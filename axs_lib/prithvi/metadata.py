"""When and where an image was taken, as Prithvi was trained on it: days of the year from 1, latitude first."""

from __future__ import annotations

import calendar
import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from axs_lib.checks import check_number
from axs_lib.errors import InputError, listed, meant

METADATA_KEYS = ("date", "year", "month", "day_of_year", "lat", "lon", "biome")
YEARS = (1970, 2100)
MID_MONTH = 15  # day of the month that stands for a month alone
ANY_YEAR, LEAP_YEAR = 2021, 2020  # where the year is unknown

# The terrestrial biomes of WWF (Olson et al. 2001) by their number.
BIOMES: tuple[str, ...] = (
    "Tropical and Subtropical Moist Broadleaf Forests",
    "Tropical and Subtropical Dry Broadleaf Forests",
    "Tropical and Subtropical Coniferous Forests",
    "Temperate Broadleaf and Mixed Forests",
    "Temperate Conifer Forests",
    "Boreal Forests or Taiga",
    "Tropical and Subtropical Grasslands, Savannas and Shrublands",
    "Temperate Grasslands, Savannas and Shrublands",
    "Flooded Grasslands and Savannas",
    "Montane Grasslands and Shrublands",
    "Tundra",
    "Mediterranean Forests, Woodlands and Scrub",
    "Deserts and Xeric Shrublands",
    "Mangroves",
)
UNKNOWN_BIOME = 0

MetadataLike = Mapping[str, object] | Sequence[Mapping[str, object] | None] | None


@dataclass(frozen=True)
class Metadata:
    """Date, place and biome of one image; ``None`` is unknown."""

    year: int | None = None
    day_of_year: int | None = None  # 1 to 366
    lat: float | None = None  # degrees north
    lon: float | None = None  # degrees east
    biome: int = UNKNOWN_BIOME  # 1 to 14 as in ``BIOMES``


@dataclass(frozen=True)
class EncodedMetadata:
    """Metadata of a batch as tensors."""

    temporal: Tensor  # (B, 2) float32, year and day of year, NaN = unknown
    location: Tensor  # (B, 2) float32, latitude and longitude in degrees, NaN = unknown
    biome: Tensor  # (B,) int64, ``UNKNOWN_BIOME`` = unknown

    def __getitem__(self, index: Tensor) -> EncodedMetadata:
        """The samples of these numbers."""
        return EncodedMetadata(self.temporal[index], self.location[index], self.biome[index])

    def drop(self, probability: float) -> EncodedMetadata:
        """Forget date, place and biome, each by itself, drawn from torch's global generator, as dropout is."""
        gone = torch.rand(3, len(self.biome), device=self.biome.device) < probability
        return EncodedMetadata(
            self.temporal.masked_fill(gone[0, :, None], torch.nan),
            self.location.masked_fill(gone[1, :, None], torch.nan),
            self.biome.masked_fill(gone[2], UNKNOWN_BIOME),
        )


def encode_metadata(metadata: MetadataLike, batch: int, device: torch.device | str = "cpu") -> EncodedMetadata:
    """Metadata of a batch: None (unknown), one mapping for all, or one or None a sample; else InputError."""
    if metadata is None or isinstance(metadata, Mapping):
        known = [parse_metadata(metadata)] * batch
    elif isinstance(metadata, Sequence):
        if len(metadata) != batch:
            raise InputError(
                f"metadata holds {len(metadata)} entries and the batch {batch} images; expected one mapping a sample,"
                " or a single mapping for all"
            )
        known = [parse_metadata(each, f"metadata[{index}]") for index, each in enumerate(metadata)]
    else:
        raise InputError(
            f"metadata is a {type(metadata).__name__}; expected a mapping such as {{'date': '2021-07-14', 'lat': 48.2,"
            " 'lon': 16.4}, a list of one mapping a sample, or None"
        )

    rows = [(each.year, each.day_of_year, each.lat, each.lon) for each in known]
    values = [math.nan if value is None else value for row in rows for value in row]
    temporal, location = torch.tensor(values, dtype=torch.float32, device=device).reshape(batch, 2, 2).unbind(1)
    biome = torch.tensor([each.biome for each in known], dtype=torch.int64, device=device)
    return EncodedMetadata(temporal, location, biome)


def parse_metadata(metadata: Mapping[str, object] | None, name: str = "metadata") -> Metadata:
    """Check the metadata of one sample, which an error calls ``name``.

    They are any of ``date`` (ISO text, ``datetime.date`` or ``datetime``), ``year``, ``month`` (1 to 12; alone it
    stands for its 15th), ``day_of_year`` (1 to 366), ``lat``, ``lon`` (degrees), ``biome`` (a number 1 to 14 or a name
    in ``BIOMES``). Raises InputError: unknown keys, wrong types, values out of range, or values that contradict each
    other.
    """
    if metadata is None:
        return Metadata()
    if not isinstance(metadata, Mapping):
        raise InputError(
            f"{name} is a {type(metadata).__name__}; expected a mapping with any of {', '.join(METADATA_KEYS)}"
        )
    for key in metadata:
        if key not in METADATA_KEYS:
            keys = f"{listed(METADATA_KEYS)}.{meant(key, METADATA_KEYS)}"
            raise InputError(f"{name} has the unknown key {key!r}; the keys are {keys}")
    given = {key: value for key, value in metadata.items() if value is not None}
    year, day_of_year = _when(given, name)
    lat = _number(given, "lat", -90.0, 90.0, name)
    lon = _number(given, "lon", -180.0, 180.0, name, " (for 0 to 360 subtract 360 above 180)")
    biome = _biome(given["biome"], name) if "biome" in given else UNKNOWN_BIOME
    return Metadata(year, day_of_year, lat, lon, biome)


def _when(given: Mapping[str, object], name: str) -> tuple[int | None, int | None]:
    """Year and day of year from whatever tells them, refusing contradictions."""
    year = _whole(given, "year", *YEARS, name)
    month = _whole(given, "month", 1, 12, name)
    day_of_year = _whole(given, "day_of_year", 1, 366, name, " (1 is 1 January)")
    if "date" in given:
        date = _date(given["date"], name)
        of_date = {"year": date.year, "month": date.month, "day_of_year": date.timetuple().tm_yday}
        for key, value in (("year", year), ("month", month), ("day_of_year", day_of_year)):
            if value is not None and value != of_date[key]:
                raise InputError(
                    f"{name} is inconsistent: date {date.isoformat()} has {key} {of_date[key]}, and {key} is {value};"
                    f" leave {key} out or correct it"
                )
        return of_date["year"], of_date["day_of_year"]
    if day_of_year == 366 and year is not None and not calendar.isleap(year):
        raise InputError(f"{name}: day_of_year is 366, and {year} has 365 days; expected 1 to 365")
    if day_of_year is None:
        middle = None if month is None else datetime.date(year or ANY_YEAR, month, MID_MONTH).timetuple().tm_yday
        return year, middle
    if month is not None:
        years = (year,) if year is not None else (LEAP_YEAR,) if day_of_year == 366 else (LEAP_YEAR, ANY_YEAR)
        months = {(datetime.date(y, 1, 1) + datetime.timedelta(day_of_year - 1)).month for y in years}
        if month not in months:
            raise InputError(
                f"{name} is inconsistent: day_of_year {day_of_year} lies in month {min(months)}, and month is"
                f" {month}; leave one of them out"
            )
    return year, day_of_year


def _date(value: object, name: str) -> datetime.date:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            raise InputError(f"{name}: date is {value!r}; expected a day that exists, as YYYY-MM-DD") from None
    if not isinstance(value, datetime.date):
        raise InputError(f"{name}: date is a {type(value).__name__}; expected text as YYYY-MM-DD or a datetime.date")
    date = value.date() if isinstance(value, datetime.datetime) else value
    if not YEARS[0] <= date.year <= YEARS[1]:
        raise InputError(f"{name}: date is {date.isoformat()}; expected a year from {YEARS[0]} to {YEARS[1]}")
    return date


def _number(given: Mapping[str, object], key: str, low: float, high: float, name: str, note: str = "") -> float | None:
    if key not in given:
        return None
    return check_number(f"{name}: {key}", given[key], low, high, f"a number, {low:g} to {high:g}{note}")


def _whole(given: Mapping[str, object], key: str, low: int, high: int, name: str, note: str = "") -> int | None:
    number = _number(given, key, low, high, name, note)
    if number is None:
        return None
    if number != int(number):
        raise InputError(f"{name}: {key} is {given[key]}; expected a whole number from {low} to {high}{note}")
    return int(number)


def _biome(value: object, name: str) -> int:
    if isinstance(value, str):
        names = {_plain(biome): number for number, biome in enumerate(BIOMES, start=1)}
        if _plain(value) in names:
            return names[_plain(value)]
        raise InputError(
            f"{name}: biome is {value!r}; expected a number from 1 to {len(BIOMES)} or one of"
            f" {'; '.join(BIOMES)}.{meant(_plain(value), names)}"
        )
    return _whole({"biome": value}, "biome", 1, len(BIOMES), name, " (the WWF biomes)") or UNKNOWN_BIOME


def _plain(text: str) -> str:
    """Lower-case words of a biome's name, whichever way it joins them."""
    words = re.findall(r"[a-z]+", text.lower())
    return " ".join(word for word in words if word not in ("and", "or"))
