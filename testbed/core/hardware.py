"""How real devices are reached: keys of the bench file that the emulated and the lab backend read and `sim` ignores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from testbed.core.specs import Spec

Positive = Annotated[float, Field(gt=0)]


class PlutoSpec(Spec):
    """One PlutoSDR, or another radio with an AD936x that an iiod serves."""

    driver: Literal["native", "pyadi"] = Field(
        "native", description="native: needs nothing but a network; pyadi: through pyadi-iio and libiio"
    )
    uri: str | None = Field(
        None,
        pattern=r"^ip:.+",
        description="ip:HOST or ip:HOST:PORT; with several alike boards a pattern such as ip:192.168.{}.1, filled with "
        "the board's number",
    )
    serial: str | None = Field(None, description="hw_serial; another radio behind the uri is refused")
    channels: Literal[1, 2] = Field(1, description="receive channels in use, one antenna each; 2 needs a 2R2T radio")
    gain_db: float = Field(50.0, ge=-3, le=71, description="manual receive gain")
    rx_full_scale_dbm: float = Field(
        0.0, description="input power of a tone that fills the receive converter at 0 dB gain; 0 is a guess"
    )
    tx_full_scale_dbm: float | None = Field(
        None,
        description="radiated power of a tone that fills the transmit converter at 0 dB attenuation, amplifiers "
        "included; 7 dBm by default, the most that is known of a PlutoSDR; emulated: 13 dB above max_power_dbm",
    )
    xo_correction: int | None = Field(None, description="frequency of the radio's crystal, hertz; its own by default")


class MeterSpec(Spec):
    """A board's energy meter and the control of its processor's frequency."""

    energy: Literal["model", "constant", "rapl", "hwmon"] = Field(
        "model",
        description="model: kappa cycles frequency^2; constant: power_w times the measured time, as an assumption; "
        "rapl: Intel and AMD powercap; hwmon: INA2xx and INA3221 sensors of single-board computers",
    )
    power_w: Positive = Field(5.0, description="of a working board, where energy is constant")
    sensor: str | None = Field(None, description="name or label of the hwmon sensor; every power sensor by default")
    cpu_frequency: bool = Field(
        False, description="set the processor's frequency by cpufreq as schemes order it, and restore it at the end"
    )
    sysfs: str = Field("/sys", description="where the kernel shows its devices")


class StagePortSpec(Spec):
    """The motor controller of one antenna's stage."""

    driver: Literal["grbl", "zaber"] = Field(
        "grbl", description="grbl: GRBL 1.1 on a serial line; zaber: through zaber-motion (the extra zaber)"
    )
    port: str | None = Field(
        None,
        description="serial port or pyserial URL: /dev/ttyUSB0, socket://HOST:PORT, rfc2217://HOST:PORT, spy://...",
    )
    axes: Literal["x", "y", "z", "xy", "yx", "xz", "zx", "yz", "zy"] = Field(
        "xy", description="the controller's axis of each stage coordinate; one axis alone is a rail, the second "
        "coordinate stays 0"
    )  # fmt: skip
    machine_zero_m: tuple[float, float] | None = Field(
        None,
        description="machine coordinates of the stage frame's zero; by default homing ends at the upper end stop, of "
        "Zaber stages at the lower",
    )
    backlash_m: float = Field(
        0.0, ge=0, description="play of the screws; targets are always approached from below by this much"
    )
    tolerance_m: Positive = Field(2e-5, description="largest distance from the target that counts as arrived")
    microstep_m: Positive | None = Field(None, description="zaber: way of one microstep, from the data sheet")
    rail: str | None = Field(
        None, description="name of the rail that this carriage shares with others, which it cannot pass"
    )
    home: bool = Field(True, description="home the stage at the start where its position is not known; false: refuse")

    @model_validator(mode="after")
    def _rail_is_one_axis(self) -> StagePortSpec:
        if self.rail is not None and len(self.axes) != 1:
            raise ValueError(f'rail: a carriage on a rail has one axis; axes = "{self.axes}" names two')
        return self
