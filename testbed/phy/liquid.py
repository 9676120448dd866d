"""The binding to liquid-dsp: the C interface of its OFDM frame generator and synchroniser, and nothing more.

The PyPI wheel `liquid-dsp` is one shared object that exports the whole C API; it is loaded when it is first needed.
Numbers of modulations, codes and checks come from the library's own look-up, so no table of constants can go stale.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from testbed.core.errors import ConfigError

HEADER_BYTES = 8
"""User bytes in a frame's header."""

MAX_PAYLOAD_BYTES = 9216
"""Longest payload of one frame that the library accepts."""

_OWN_HEADER_BYTES = 6
"""What the library adds to the user's header: version, payload length, modulation, codes, check."""

CHECK = "crc32"
HEADER_MODULATION, HEADER_CODE = "bpsk", "g2412"

CODES = ("none", "rep3", "rep5", "h74", "h84", "h128", "g2412", "secded3932", "secded7264")
"""Codes that the wheel contains and decodes without complaint. Convolutional and Reed-Solomon codes need libfec, which
it is built without; the decoder of its SEC-DED(22,16) refuses some received words."""

_SILENT = 6
"""A level of the library's log above the highest: frames that fail are data here, not messages on the screen."""


class _Properties(ctypes.Structure):
    """ofdmflexframegenprops_s"""

    _fields_ = (
        ("check", ctypes.c_uint),
        ("fec0", ctypes.c_uint),
        ("fec1", ctypes.c_uint),
        ("mod_scheme", ctypes.c_uint),
    )


class Statistics(ctypes.Structure):
    """framesyncstats_s: what the synchroniser measured on one frame."""

    _fields_ = (
        ("evm", ctypes.c_float),
        ("rssi", ctypes.c_float),
        ("cfo", ctypes.c_float),
        ("framesyms", ctypes.c_void_p),
        ("num_framesyms", ctypes.c_uint),
        ("mod_scheme", ctypes.c_uint),
        ("mod_bps", ctypes.c_uint),
        ("check", ctypes.c_uint),
        ("fec0", ctypes.c_uint),
        ("fec1", ctypes.c_uint),
    )


_POINTER, _UINT, _INT = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int

_ON_FRAME = ctypes.CFUNCTYPE(_INT, _POINTER, _INT, _POINTER, _UINT, _INT, Statistics, _POINTER)

_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ofdmflexframegen_create": (_POINTER, (_UINT, _UINT, _UINT, _POINTER, _POINTER)),
    "ofdmflexframegen_destroy": (_INT, (_POINTER,)),
    "ofdmflexframegen_set_header_props": (_INT, (_POINTER, _POINTER)),
    "ofdmflexframegen_assemble": (_INT, (_POINTER, ctypes.c_char_p, ctypes.c_char_p, _UINT)),
    "ofdmflexframegen_getframelen": (_UINT, (_POINTER,)),
    "ofdmflexframegen_write": (_INT, (_POINTER, _POINTER, _UINT)),
    "ofdmflexframesync_create": (_POINTER, (_UINT, _UINT, _UINT, _POINTER, _ON_FRAME, _POINTER)),
    "ofdmflexframesync_destroy": (_INT, (_POINTER,)),
    "ofdmflexframesync_reset": (_INT, (_POINTER,)),
    "ofdmflexframesync_set_header_props": (_INT, (_POINTER, _POINTER)),
    "ofdmflexframesync_decode_header_soft": (_INT, (_POINTER, _INT)),
    "ofdmflexframesync_decode_payload_soft": (_INT, (_POINTER, _INT)),
    "ofdmflexframesync_execute": (_INT, (_POINTER, _POINTER, _UINT)),
    "liquid_getopt_str2mod": (_INT, (ctypes.c_char_p,)),
    "liquid_getopt_str2fec": (_INT, (ctypes.c_char_p,)),
    "liquid_getopt_str2crc": (_INT, (ctypes.c_char_p,)),
    "liquid_logger_set_level": (_INT, (_POINTER, _INT)),
    "packetizer_compute_enc_msg_len": (_UINT, (_UINT, _INT, _INT, _INT)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The shared object, loaded on first use.

    Raises:
        ConfigError: liquid-dsp is not installed, or lacks what is needed.
    """
    remedy = "pip install liquid-dsp"
    found = importlib.util.find_spec("liquid")
    if found is None or not found.origin:
        raise ConfigError("the digital uplink needs liquid-dsp, which is not installed", remedy=remedy)
    try:
        shared = ctypes.CDLL(found.origin)
        for name, (returns, takes) in _SIGNATURES.items():
            function = getattr(shared, name)
            function.restype, function.argtypes = returns, takes
    except (OSError, AttributeError) as error:
        message = f"liquid-dsp at {found.origin} does not serve the digital uplink: {error}"
        raise ConfigError(message, remedy=remedy) from error
    shared.liquid_logger_set_level(None, _SILENT)
    return shared


def number_of(family: str, name: str) -> int:
    """The library's number of a modulation ("mod"), a code ("fec") or a check ("crc").

    Raises:
        ValueError: the library does not know the name, or is built without that code.
    """
    if family == "fec" and name not in CODES:
        raise ValueError(f"code {name!r} is not in liquid-dsp as installed; take one of {', '.join(CODES)}")
    # 0 is the "unknown" of all three families
    number = int(getattr(library(), f"liquid_getopt_str2{family}")(name.encode()))
    if number == 0:
        raise ValueError(f"liquid-dsp knows no {family} {name!r}")
    return number


def _properties(modulation: str, fec0: str, fec1: str) -> _Properties:
    return _Properties(
        number_of("crc", CHECK), number_of("fec", fec0), number_of("fec", fec1), number_of("mod", modulation)
    )


@functools.lru_cache(maxsize=4096)
def encoded_bytes(num_bytes: int, fec0: str, fec1: str) -> int:
    """Bytes of a payload with its CRC-32, after both codes."""
    codes = number_of("fec", fec0), number_of("fec", fec1)
    return int(library().packetizer_compute_enc_msg_len(num_bytes, number_of("crc", CHECK), *codes))


def header_symbols() -> int:
    """Data symbols of a frame's header: BPSK under a Golay code."""
    return 8 * encoded_bytes(HEADER_BYTES + _OWN_HEADER_BYTES, HEADER_CODE, "none")


class Generator:
    """Turns (header, payload) into the samples of a frame, unit power."""

    def __init__(self, handle: int, block: int, taper: int) -> None:
        self._handle, self._block, self._taper = handle, block, taper

    def frame(self, header: bytes, payload: bytes) -> np.ndarray:
        """Samples of one frame, shape [num_symbols * block + taper], complex64.

        Raises:
            ValueError: header or payload have a wrong length, or the library refuses them.
        """
        if len(header) != HEADER_BYTES:
            raise ValueError(f"a header has {HEADER_BYTES} bytes, not {len(header)}")
        if not 1 <= len(payload) <= MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload has 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
        shared = library()
        if shared.ofdmflexframegen_assemble(self._handle, header, payload, len(payload)) != 0:
            raise ValueError("liquid-dsp refuses to assemble the frame")
        length = shared.ofdmflexframegen_getframelen(self._handle) * self._block + self._taper
        samples = np.zeros(length + self._block, np.complex64)
        if shared.ofdmflexframegen_write(self._handle, samples.ctypes.data, samples.size) == 0:
            raise ValueError("liquid-dsp wrote a longer frame than it announced")
        return samples[:length]


@contextmanager
def generator(
    allocation: np.ndarray, cyclic_prefix: int, taper: int, modulation: str, fec0: str, fec1: str
) -> Iterator[Generator]:
    """A frame generator that is destroyed on leaving the block."""
    shared = library()
    carriers = np.ascontiguousarray(allocation, np.uint8)
    properties, head = _properties(modulation, fec0, fec1), _properties(HEADER_MODULATION, HEADER_CODE, "none")
    handle = shared.ofdmflexframegen_create(
        carriers.size, cyclic_prefix, taper, carriers.ctypes.data, ctypes.addressof(properties)
    )
    if not handle:
        raise ValueError("liquid-dsp refuses this allocation of subcarriers")
    try:
        shared.ofdmflexframegen_set_header_props(handle, ctypes.addressof(head))
        yield Generator(handle, carriers.size + cyclic_prefix, taper)
    finally:
        shared.ofdmflexframegen_destroy(handle)


class Frame:
    """What the synchroniser reports of one frame: bytes, whether their checks hold, and statistics."""

    def __init__(
        self, header: bytes, header_valid: bool, payload: bytes, payload_valid: bool, statistics: Statistics
    ) -> None:
        self.header, self.payload = header, payload
        self.header_valid = header_valid
        # a frame that names another check, or none, is no frame of ours
        self.payload_valid = payload_valid and header_valid and statistics.check == number_of("crc", CHECK)
        self.error_power = 10.0 ** (statistics.evm / 10.0)
        self.cfo = float(statistics.cfo) / (2.0 * np.pi)


class Synchroniser:
    """Receives one frame at a time from samples that begin at its preamble."""

    def __init__(self, handle: int, block: int, frames: list[Frame]) -> None:
        self._handle, self._block, self._frames = handle, block, frames

    def first_frame(self, samples: np.ndarray) -> Frame | None:
        """The first frame in `samples`, complex64 and contiguous; None if there is none or it is cut off."""
        shared = library()
        self._frames.clear()
        shared.ofdmflexframesync_reset(self._handle)
        step = 64 * self._block
        # the end of the frame is known only when it has come: feed in steps and stop there
        for start in range(0, samples.size, step):
            chunk = samples[start : start + step]
            shared.ofdmflexframesync_execute(self._handle, chunk.ctypes.data, chunk.size)
            if self._frames:
                return self._frames[0]
        return None


@contextmanager
def synchroniser(allocation: np.ndarray, cyclic_prefix: int, taper: int) -> Iterator[Synchroniser]:
    """A frame synchroniser that is destroyed on leaving the block; soft decisions on header and payload."""
    shared = library()
    carriers = np.ascontiguousarray(allocation, np.uint8)
    head = _properties(HEADER_MODULATION, HEADER_CODE, "none")
    frames: list[Frame] = []

    def on_frame(
        header: int, header_valid: int, payload: int | None, length: int, valid: int, statistics: Statistics, _: object
    ) -> int:
        data = ctypes.string_at(payload, length) if payload else b""
        frames.append(Frame(ctypes.string_at(header, HEADER_BYTES), bool(header_valid), data, bool(valid), statistics))
        return 0

    # the library keeps a bare pointer: this name keeps the function alive until the object is destroyed
    callback = _ON_FRAME(on_frame)
    handle = shared.ofdmflexframesync_create(carriers.size, cyclic_prefix, taper, carriers.ctypes.data, callback, None)
    if not handle:
        raise ValueError("liquid-dsp refuses this allocation of subcarriers")
    try:
        shared.ofdmflexframesync_set_header_props(handle, ctypes.addressof(head))
        shared.ofdmflexframesync_decode_header_soft(handle, 1)
        shared.ofdmflexframesync_decode_payload_soft(handle, 1)
        yield Synchroniser(handle, carriers.size + cyclic_prefix, frames)
    finally:
        shared.ofdmflexframesync_destroy(handle)
        del callback
