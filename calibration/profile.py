"""A profile: what one calibration found, dated, with units and uncertainty, and what it is valid for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from calibration.routine import Curve, Fit, Quantity

FORMAT: Literal[1] = 1
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def numbers(value: Any) -> Any:
    """A number, or nested tuples of numbers, out of arrays, lists, and JSON's words for what is not finite.

    Args:
        value: number, numpy scalar, array, list or tuple, nested; "nan", "inf" and "-inf" stand for themselves.

    Returns:
        int, float, or nested tuples of them.

    Raises:
        ValueError: anything else, complex numbers too: they are stored as [real, imaginary].
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(numbers(one) for one in value)
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    raise ValueError(f"{value!r} is no number, nor a list of numbers; a complex one is written [real, imaginary]")


def plain(value: Any) -> Any:
    """The same as JSON holds it: lists, and words for what is not finite."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


Numbers = Annotated[Any, BeforeValidator(numbers), PlainSerializer(plain)]


class _Record(BaseModel):
    """Frozen content of a profile; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredQuantity(_Record):
    """See `calibration.routine.Quantity`."""

    value: Numbers
    unit: str
    std: Numbers


class StoredCurve(_Record):
    """See `calibration.routine.Curve`."""

    title: str
    x_label: str
    y_label: str
    x: Numbers
    measured: Numbers
    fitted: Numbers | None = None


class Validity(_Record):
    """Settings that a profile is valid for; one that is absent does not matter to it.

    Attributes:
        frequency_hz: the carrier.
        sample_rate_hz: it also decides the radios' filters.
        gain: receive gain of each radio behind the antennas, power ratio.
        array: fingerprint of where the antennas may be, on which stages, see `calibration.fingerprint`.
    """

    frequency_hz: float | None = None
    sample_rate_hz: float | None = None
    gain: tuple[float, ...] | None = None
    array: str | None = None


class Profile(_Record):
    """What one calibration found.

    Attributes:
        id: unique; ids sort by time.
        routine: as on the command line.
        options: of the routine, defaults filled in.
        bench: its name.
        bench_sha256: of all in the bench file that any calibration depends on, see `calibration.fingerprint`.
        backend: who played the devices.
        seed: of the simulated world, and of the order of steps.
        serials: radio -> serial number.
        firmware: radio -> version, where it is known.
        made, expires: UTC; a profile that never expires has None.
        values: name -> quantity.
        passed: whether the values may be used.
        why: why not, or what limits their accuracy.
        raw: files of raw data, relative to the profile.
        versions, commit: of the code.
    """

    format: Literal[1] = FORMAT
    id: str = Field(min_length=1)
    routine: str
    options: dict[str, Any]
    bench: str
    bench_sha256: str
    backend: str
    seed: int
    serials: dict[str, str] = {}
    firmware: dict[str, str] = {}
    validity: Validity = Validity()
    made: AwareDatetime
    expires: AwareDatetime | None = None
    values: dict[str, StoredQuantity]
    passed: bool
    why: str
    curves: tuple[StoredCurve, ...] = ()
    raw: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    commit: str = "unknown"

    @property
    def quantities(self) -> dict[str, Quantity]:
        """The values as a routine gives them: what corrections are made of."""
        return {name: Quantity(one.value, one.unit, one.std) for name, one in self.values.items()}

    def age(self, now: datetime) -> timedelta:
        """Since it was made."""
        return now - self.made

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and now >= self.expires


def expiry(made: datetime, lasts_s: float) -> datetime | None:
    """When a profile made then stops to hold; None for never."""
    try:
        return made + timedelta(seconds=lasts_s)
    except OverflowError:
        return None


def stored_values(fit: Fit) -> dict[str, StoredQuantity]:
    """What a fit found. Raises pydantic's ValidationError where a value is no number."""
    return {name: StoredQuantity(value=one.value, unit=one.unit, std=one.std) for name, one in fit.values.items()}


def stored_curves(curves: tuple[Curve, ...]) -> tuple[StoredCurve, ...]:
    """The figures of a fit."""
    return tuple(
        StoredCurve(
            title=curve.title,
            x_label=curve.x_label,
            y_label=curve.y_label,
            x=curve.x,
            measured=curve.measured,
            fitted=curve.fitted,
        )
        for curve in curves
    )


def utc_now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)
