"""Open files safely: rasters by a list of allowed drivers, .npz and .pt without unpickling, XML without entities.

Only regular files are opened; an address (``https://``, ``/vsi...``) only where the caller says that the user wrote it.
Shapes and sizes are checked before any pixel is read, and a file that is cut short is an error.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from axs_lib.errors import InputError, counted, first_line, listed
from axs_lib.io.files import PathLike, check_regular, check_utf8, open_regular
from axs_lib.progress import logger

FloatArray = NDArray[np.float32]

# Drivers of GDAL, by how their files begin and are named; a COG is a GTiff. Others, a VRT above all, open nothing.
DRIVERS = {
    "GTiff": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), (".tif", ".tiff")),
    "JP2OpenJPEG": ((b"\0\0\0\x0cjP  ", b"\xffO\xffQ"), (".jp2", ".j2k")),
    "PNG": ((b"\x89PNG",), (".png",)),
}
ALONG = (  # how the names of files end that GDAL reads along with an image, in small or capital letters
    "ovr", "msk", "aux", "aux.xml", "xml", "tab", "wld", "tfw", "tifw", "tiffw", "j2w", "jp2w", "pgw", "pngw", "imd",
    "rpb", "rpc", "pass",
)  # fmt: skip
LARGEST = 2**29  # values of an .npz or .pt array, which has to fit in memory: 2 GB of float32
LARGEST_SIDE = 2**20  # px
LARGEST_XML = 2**22  # bytes
LARGEST_TEXT = 2**22  # bytes of a text in an .npz, such as the provenance
_ADDRESS = re.compile(r"/vsi|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # types of block offsets and sizes
_BLOCKS = ((273, 279), (324, 325))  # tags of offsets and sizes, of strips and of tiles
_MOST_DIRECTORIES = 1000


def is_address(path: PathLike) -> bool:
    """Whether a path is an address or one of GDAL's virtual file systems, and no file of this machine."""
    return bool(_ADDRESS.match(os.fspath(path)))


def check_file(path: PathLike, what: str = "the file") -> Path:
    """Check that a path is a regular file that may be read and is not empty, and no address; else InputError."""
    if is_address(path):
        raise InputError(f"{path} is an address; expected {what} on this machine: download it first")
    file = check_regular(path, what)
    if not os.access(file, os.R_OK):
        raise InputError(f"{path} may not be read; expected a readable file: change its permissions")
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected {what}: write it again")
    return file


def unreadable(path: PathLike, expected: str, error: Exception) -> str:
    """What to say of a file that a library cannot read."""
    return (
        f"{path} cannot be read; expected {expected}: it is damaged, truncated or of another kind ({first_line(error)})"
    )


@contextmanager
def open_raster(path: PathLike, *, addresses: bool = False) -> Iterator[Any]:
    """A rasterio dataset of an allowed driver; ``addresses`` says that the user or ``axs_lib.io.safe`` wrote it."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    if not is_address(path):
        file = check_file(path, "the image")
        check_whole(file)
        _check_along(file)
    elif not addresses:
        raise InputError(f"{path} is an address; expected a file: only addresses that you write yourself are opened")
    check_utf8(path, "the image")
    driver = _driver(path)
    # Beside an address lies nothing; beside a file GDAL looks for fixed names, of mixed case for none.
    beside = "EMPTY_DIR" if is_address(path) else "TRUE"
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=beside), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # The whole path of a file, since GDAL reads GTIFF_DIR:1:a.tif and file:a.tif as other names of a.tif.
            whole = os.fspath(path) if is_address(path) else str(Path(path).absolute())
            dataset = rasterio.open(whole, driver=driver)
            _ = dataset.crs, dataset.colorinterp  # what is wrong with a file beside it is told only now
            if not is_address(path):  # what GDAL opens now, it does not look for when the setting is gone
                _ = dataset.overviews(1), dataset.mask_flag_enums, dataset.files
    except Exception as error:  # GDAL's own errors have no public class
        raise InputError(unreadable(path, "a GeoTIFF, COG or JPEG 2000 image", error)) from error
    logger.info("reads %s: %s of %d x %d px", path, counted(dataset.count, "band"), dataset.height, dataset.width)
    with dataset:
        if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
            raise InputError(f"{path} names another file as its overviews, which is not opened; write it again")
        yield dataset


def _check_along(file: Path) -> None:
    """Refuse what GDAL would read along with a file, in small or capital letters: pipes, and other drivers' images."""
    names = {f"{start}.{end}" for start in (file.stem, file.name) for end in (*ALONG, *map(str.upper, ALONG))}
    for each in sorted(each for each in map(file.with_name, names - {file.name}) if os.path.lexists(each)):
        if each.name.lower() in (f"{file.name}.ovr".lower(), f"{file.name}.msk".lower()):
            check_whole(check_file(each), must_be_tiff=True)
            with open_raster(each):  # and what GDAL reads along with it
                pass
        elif each.exists() and not each.is_dir():
            with open_regular(each) as opened:
                if opened.read(15) == b"EHFA_HEADER_TAG":
                    raise InputError(f"{each} may hold overviews of another image, which are not read: move it away")


def _driver(path: PathLike) -> str:
    """The driver of a file by its first bytes, of an address by its name."""
    text = os.fspath(path)
    if is_address(path):
        suffix = Path(text.partition("?")[0]).suffix.lower()
        return next((driver for driver, (_, names) in DRIVERS.items() if suffix in names), "GTiff")
    with Path(path).open("rb") as file:
        start = file.read(16)
    for driver, (magics, _) in DRIVERS.items():
        if start.startswith(magics):
            return driver
    raise InputError(
        f"{text} is no GeoTIFF, COG, JPEG 2000 or PNG, whatever its name says; expected one of them: it is damaged or"
        " of another kind; open NetCDF, HDF5 and Zarr with xarray in Python, or write them as GeoTIFF"
    )


def check_whole(path: Path, *, must_be_tiff: bool = False) -> None:
    """Check that every directory, tag and block of a TIFF lies inside the file, and every chunk of a PNG is whole.

    GDAL ignores such tags, and reads what is left of a PNG as other pixels. What is neither is left to its own driver,
    or is refused with ``must_be_tiff``. Raises InputError.
    """
    with path.open("rb") as file:
        start = file.read(2)
        order = {b"II": "<", b"MM": ">"}.get(start)
        try:
            if start == DRIVERS["PNG"][0][0][:2] and not must_be_tiff:
                _walk_png(file)
            version = struct.unpack(f"{order}H", file.read(2))[0] if order else 0
            if order is not None and version in (42, 43):
                _walk_tiff(file, order, version == 43, path.stat().st_size)
            elif must_be_tiff:
                raise InputError(f"{path} is no TIFF; expected overviews or a mask as GDAL writes them: remove it")
        except (struct.error, EOFError) as error:
            raise InputError(
                f"{path} is cut short or damaged ({error}), so that pixels or band names are lost; write it again"
            ) from error


def _walk_png(file: BinaryIO) -> None:
    """Raises EOFError at the first chunk that is cut or damaged."""
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        content = file.read(length)
        if zlib.crc32(kind + content) != struct.unpack(">I", file.read(4))[0]:
            raise EOFError(f"its part {kind!r} is damaged")


def _walk_tiff(file: BinaryIO, order: str, big: bool, size: int) -> None:
    """Raises EOFError at the first thing that lies outside of the file, or where more is listed than the file holds."""
    wide, short = ("Q", "Q") if big else ("I", "H")
    entry_size, inline = (20, 8) if big else (12, 4)

    def numbers(kind: str, count: int, at: int) -> tuple[int, ...]:
        file.seek(at)
        return struct.unpack(f"{order}{count}{kind}", file.read(count * struct.calcsize(f"{order}{kind}")))

    (at,) = numbers(wide, 1, 8 if big else 4)
    left = 2 * size  # bytes of directories and lists of blocks; those that name each other or overlap have no end
    for _ in range(_MOST_DIRECTORIES):
        if at == 0:
            return
        if at >= size:
            raise EOFError("a directory lies behind its end")
        (count,) = numbers(short, 1, at)
        first = at + struct.calcsize(f"{order}{short}")
        end = first + count * entry_size
        if end > size:
            raise EOFError("a directory is not whole")
        left -= count * entry_size
        blocks: dict[int, NDArray[np.int64]] = {}
        for here in range(first, end, entry_size):
            tag, kind = numbers("H", 2, here)
            (values,) = numbers(wide, 1, here + 4)
            length, where = values * _TIFF_TYPES.get(kind, 1), here + entry_size - inline
            if left < 0:
                raise EOFError("its directories have no end")
            if length > inline:
                (where,) = numbers(wide, 1, where)
                if where + length > size:
                    raise EOFError(f"tag {tag} lies behind its end")
            if any(tag in pair for pair in _BLOCKS) and kind in _TIFF_NUMBERS:
                left -= length
                blocks[tag] = np.array(numbers(_TIFF_NUMBERS[kind], values, where), dtype=np.int64)
        for offsets, sizes in _BLOCKS:
            starts, lengths = blocks.get(offsets), blocks.get(sizes)
            if starts is None or lengths is None or len(starts) != len(lengths):
                continue
            if (starts + lengths).max(initial=0) > size:
                raise EOFError("pixels lie behind its end")
        (at,) = numbers(wide, 1, end)
    raise EOFError("its directories have no end")


class Arrays:
    """The arrays of an open .npz, checked one by one as they are asked for."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def shape(self, key: str, expected: str | None = None, *, boolean: bool = False) -> tuple[int, ...]:
        """Shape of an array of real numbers, or of booleans where those may be, without reading it."""
        shape, dtype = self._header(key, expected)
        if dtype.kind not in ("fiub" if boolean else "fiu"):
            raise InputError(f"{self._path}: {key} holds {dtype}; expected real numbers")
        return shape

    def numbers(self, key: str, expected: str | None = None, *, boolean: bool = False) -> FloatArray:
        """One array as float32; ``InputError`` where it is missing, pickled, damaged or not numeric."""
        self.shape(key, expected, boolean=boolean)
        with np.errstate(over="ignore"):
            return self._array(key).astype(np.float32, copy=False)

    def sar(self, expected: str | None = None) -> FloatArray:
        """``s1``, or ``s1_vv`` and ``s1_vh`` of one shape (..., H, W) as one stack (..., 2, H, W), as ``numbers``."""
        if "s1" in self:
            return self.numbers("s1", expected)
        vv, vh = (self.numbers(key, expected) for key in ("s1_vv", "s1_vh"))
        if vv.shape != vh.shape or vv.ndim not in (2, 3):
            raise InputError(
                f"{self._path}: s1_vv has shape {vv.shape} and s1_vh {vh.shape}; expected one shape, (H,W) or (N,H,W)"
            )
        return np.stack([vv, vh], axis=-3)

    def text(self, key: str) -> str | None:
        """A piece of text such as ``provenance``, or None where there is none."""
        shape, dtype = self._header(key) if key in self else ((0,), np.dtype("f4"))
        if dtype.kind != "U" or shape != ():
            return None
        if dtype.itemsize > LARGEST_TEXT:
            raise InputError(
                f"{self._path}: {key} is a text of {dtype.itemsize:,} bytes; expected at most {LARGEST_TEXT}"
            )
        return str(self._array(key))

    def georeference(self) -> tuple[str | None, tuple[float, ...] | None]:
        """CRS and transform as this library writes them into an .npz, where they are there."""
        shape, dtype = self._header("transform") if "transform" in self else ((0,), np.dtype("f4"))
        located = dtype.kind == "f" and shape == (6,)
        return self.text("crs"), tuple(float(v) for v in self._array("transform")) if located else None

    def _header(self, key: str, expected: str | None = None) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if key not in self:
            keys = listed(self.names[:20]) or "no arrays"
            raise InputError(f"{self._path} holds {keys}; expected {expected or key}: np.savez(path, {key}=array, ...)")
        with self._member(key) as member:
            version = npy.read_magic(member)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(member)
        if dtype.hasobject:
            raise InputError(
                f"{self._path}: {key} is a pickled object array, which is not loaded because it can run code; save"
                " plain numeric arrays with np.savez"
            )
        if np.prod(shape, dtype=object) > LARGEST or any(side < 0 for side in shape):
            raise InputError(
                f"{self._path}: {key} has shape {shape}; expected at most {LARGEST:,} values: write a GeoTIFF, which"
                " is read by windows"
            )
        return shape, dtype

    def _array(self, key: str) -> NDArray[Any]:
        with self._member(key) as member:
            return npy.read_array(member, allow_pickle=False)

    @contextmanager
    def _member(self, key: str) -> Iterator[Any]:
        try:
            with self._archive.open(f"{key}.npy") as member:
                yield member
        except Exception as error:  # numpy parses the header as Python text, which fails in many ways
            raise InputError(unreadable(self._path, f"an .npz written by np.savez, {key} in it", error)) from error


@contextmanager
def open_npz(path: PathLike) -> Iterator[Arrays]:
    """Open an .npz without ever unpickling. Raises InputError: it is no .npz."""
    file = check_file(path, "the .npz")
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path} is not an .npz archive, or it is truncated; expected a file written by np.savez (a pickled file is"
            " not loaded because it can run code): write it again with np.savez"
        ) from error
    with archive:
        yield Arrays(archive, file)


def read_pt(path: PathLike) -> FloatArray:
    """The tensor of a .pt file as float32; InputError where it holds anything else, is damaged or claims too much."""
    import torch

    file = check_file(path, "the tensor")
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        loaded = torch.load(file, map_location="cpu", weights_only=True) if size <= file.stat().st_size else None
    except MemoryError:
        raise
    except Exception as error:  # torch's restricted unpickler raises what the damage happens to hit
        raise InputError(
            f"{path} is damaged or holds pickled Python objects, which are not loaded because they can run code;"
            f" expected one plain tensor: torch.save(tensor, path) ({type(error).__name__})"
        ) from error
    if size > file.stat().st_size:
        raise InputError(f"{path} inflates to {size:,} bytes; expected torch.save(tensor, path), not compressed")
    if not isinstance(loaded, torch.Tensor):
        raise InputError(
            f"{path} holds a {type(loaded).__name__}; expected one tensor (C,H,W) or (N,C,H,W), by torch.save"
        )
    plain = loaded.layout == torch.strided and loaded.device.type == "cpu" and not loaded.is_nested
    number = loaded.dtype.is_floating_point or f"{loaded.dtype}".startswith(("torch.int", "torch.uint"))
    if not (plain and number):
        raise InputError(f"{path} holds a {loaded.layout} tensor of {loaded.dtype}; expected dense real numbers")
    if loaded.numel() * loaded.element_size() > loaded.untyped_storage().nbytes() or loaded.numel() > LARGEST:
        raise InputError(
            f"{path} claims {tuple(loaded.shape)} and holds {loaded.untyped_storage().nbytes():,} bytes; expected"
            f" at most {LARGEST:,} values, all of them in the file: save tensor.contiguous()"
        )
    return np.asarray(loaded.detach().resolve_neg().to(torch.float32).numpy())


def parse_xml(text: bytes, source: str) -> ElementTree.Element:
    """A parsed XML document; InputError where it is too large, is no XML, or has document types or entities."""
    if len(text) > LARGEST_XML or b"\0" in text[:4096] or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise InputError(
            f"{source} is no plain UTF-8 XML of at most {LARGEST_XML} bytes without a document type; expected"
            " product metadata as ESA writes it"
        )
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(unreadable(source, "XML metadata of the product", error)) from error
