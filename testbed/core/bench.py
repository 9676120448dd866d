"""The bench file: where everything stands, what it can do, and what it must never do.

Lengths are metres, frequencies hertz; power and loss carry `_dbm` and `_db` in the file only (`testbed.core.units`).
Three frames are used. *Room*: the walls, x y z. *Array*: the plane the receive antennas move in; its origin and its two
axes are given in the room frame. *Stage*: the coordinates that one antenna's motors understand; `StageSpec` says how
they lie in the array frame.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.core.hardware import MeterSpec, PlutoSpec, StagePortSpec
from testbed.core.specs import Spec
from testbed.core.world_specs import WorldSpec

SPEED_OF_LIGHT_M_S = 299_792_458.0

Point2 = tuple[float, float]
Point3 = tuple[float, float, float]
Interval = tuple[float, float]
Positive = Annotated[float, Field(gt=0)]


class WaveformSpec(Spec):
    """OFDM numerology, shared by all radios of the bench."""

    num_subcarriers: int = Field(256, ge=8, description="FFT length")
    num_active: int = Field(192, ge=2, description="subcarriers that carry symbols, around but without DC")
    cyclic_prefix: int = Field(64, ge=0, description="samples")
    frame_blocks: int = Field(128, ge=1, description="data blocks between two preambles")
    pilot_every: int = Field(32, ge=0, description="data blocks between two pilot blocks of a frame; 0 sends none")
    level: Literal["samples", "symbols"] = Field(
        "samples",
        description="samples: everything that a radio sends; symbols: without OFDM, for fast sweeps in simulation",
    )

    @model_validator(mode="after")
    def _fits(self) -> WaveformSpec:
        if self.num_active % 2 or self.num_active > self.num_subcarriers - 2:
            raise ValueError("num_active must be even and at most num_subcarriers - 2")
        if self.cyclic_prefix > self.num_subcarriers:
            raise ValueError("cyclic_prefix must be at most num_subcarriers")
        return self

    def elements_per_second(self, sample_rate_hz: float) -> float:
        """Elements of a burst in a second: samples, or at level symbols the symbols of the active subcarriers."""
        if self.level == "samples":
            return sample_rate_hz
        return sample_rate_hz * self.num_active / (self.num_subcarriers + self.cyclic_prefix)


class StageSpec(Spec):
    """One antenna's stage. Array-frame point = origin_m + rotation(rotation_rad) @ stage-frame point."""

    origin_m: Point2 = Field((0.0, 0.0), description="stage-frame zero, in the array frame")
    rotation_deg: float = Field(0.0, description="angle of the stage's first axis in the array frame")
    travel_m: tuple[Interval, Interval] | None = Field(
        None, description="end stops in the stage frame; the array's region by default"
    )
    speed_m_s: Positive = 0.1
    acceleration_m_s2: Positive = 1.0
    settle_s: float = Field(0.1, ge=0)
    power_w: float = Field(6.0, ge=0, description="electrical power while moving")
    device: StagePortSpec = StagePortSpec()


class AntennaSpec(Spec):
    """One receive antenna. Without a stage it cannot move."""

    home_m: Point2 = Field(description="where it stands at the start, array frame")
    stage: StageSpec | None = None


class ArraySpec(Spec):
    """The receiver's antennas and the region they may move in."""

    origin_m: Point3 = Field(description="array-frame zero, in the room frame")
    axes: tuple[Point3, Point3] = Field(
        ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), description="the two array axes in the room frame, orthonormal"
    )
    region_m: tuple[Interval, Interval] = Field(description="where antennas may be, array frame")
    min_spacing_m: float = Field(ge=0, description="smallest distance of two antennas")
    antennas: tuple[AntennaSpec, ...] = Field(min_length=1)
    radios: tuple[PlutoSpec, ...] = Field(
        (), description="the radios behind the antennas, in their order, each with as many antennas as it has channels"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ArraySpec:
        axes = np.asarray(self.axes)
        if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-6):
            raise ValueError("axes must be two orthonormal vectors, for instance [[1, 0, 0], [0, 0, 1]]")
        for low, high in self.region_m:
            if low >= high:
                raise ValueError(f"region_m: the interval [{low}, {high}] is empty; give [low, high]")
        channels = sum(radio.channels for radio in self.radios)
        if self.radios and channels != len(self.antennas):
            raise ValueError(
                f"radios: {len(self.radios)} radios with {channels} channels stand behind {len(self.antennas)} "
                "antennas; list as many channels as antennas"
            )
        home = np.array([antenna.home_m for antenna in self.antennas])
        for index, point in enumerate(home):
            for value, (low, high) in zip(point, self.region_m, strict=True):
                if not low <= value <= high:
                    raise ValueError(
                        f"antennas.{index}.home_m: {value:g} m is outside the region [{low:g}, {high:g}] m"
                    )
        # [num_pairs]
        left, right = np.triu_indices(len(home), 1)
        distance_m = np.linalg.norm(home[left] - home[right], axis=-1)
        if distance_m.size and distance_m.min() < self.min_spacing_m - 1e-9:
            raise ValueError(
                f"home_m: two antennas stand {distance_m.min():.4g} m apart, "
                f"below min_spacing_m = {self.min_spacing_m:g}"
            )
        return self


class NodeSpec(Spec):
    """One edge board, or `count` alike boards."""

    name: str = Field("node-{:02d}", min_length=1, description="with count above 1 a pattern such as node-{:02d}")
    count: int = Field(1, ge=1)
    position_m: Point3 | None = Field(None, description="room frame; drawn inside the room from the seed if absent")
    max_power_dbm: float = Field(10.0, description="highest average transmit power")
    cpu_hz: Positive = Field(1.5e9, description="highest CPU frequency")
    cycles_per_token: Positive = Field(2e6, description="CPU cycles to train on one token")
    kappa: Positive = Field(1e-28, description="effective switched capacitance: joules = kappa cycles frequency^2")
    radio: PlutoSpec = PlutoSpec()
    meter: MeterSpec = MeterSpec()


class LimitsSpec(Spec):
    """What the bench must never do, whatever a scheme orders."""

    frequencies_hz: tuple[Interval, ...] = Field(((2.4e9, 2.4835e9),), min_length=1, description="allowed bands")
    max_power_dbm: float = Field(20.0, description="of any transmitter")
    max_speed_m_s: Positive = Field(0.5, description="of any stage")
    dead_man_s: Positive = Field(
        1.0, description="transmitters are muted and stages held when their process shows no sign of life for so long"
    )


class LinkSpec(Spec):
    """The control link, and the broadcast of the global adapter."""

    listen: str = Field(
        "tcp://127.0.0.1:*",
        pattern=r"^tcp://",
        description="where the controller listens for nodes; * is any free port. For boards elsewhere: tcp://0.0.0.0:5570",
    )
    downlink_bit_s: Positive = Field(20e6, description="broadcast rate")
    server_power_w: float = Field(0.0, ge=0, description="power the server spends while broadcasting")
    connect_timeout_s: Positive = Field(60.0, description="how long to wait for nodes to appear, wall clock")
    answer_timeout_s: Positive = Field(
        600.0, description="how long a connected node may take over one task, wall clock"
    )


class RadioSpec(Spec):
    """What the radios can honestly do; a flag left out is derived in simulation, and false elsewhere."""

    timed_tx: bool | None = Field(None, description="a burst starts at a given instant")
    shared_clock: bool | None = Field(None, description="transmitters and receiver run on one reference")
    phase_coherent: bool | None = Field(None, description="a channel's phase still holds when data follow its pilots")
    full_duplex: bool = Field(False, description="a radio may receive while it transmits")
    trigger: Literal["clock", "beacon", "network"] = Field(
        "clock",
        description="what starts a simultaneous burst: a common clock, a radio beacon, or a message on the network",
    )
    beacon_dbm: float = Field(0.0, description="power of the beacon, where that is the trigger")
    start_jitter_s: float = Field(
        0.0,
        ge=0,
        description="standard deviation of a burst's start, measured, beyond what finding a beacon adds; captures "
        "begin and end 6 of them early and late",
    )
    trigger_line: str | None = Field(
        None,
        pattern=r"^(rts|dtr):.+",
        description="what pulls the external trigger of real radios where trigger is clock: rts:PORT or dtr:PORT, a "
        "line of a serial port",
    )


class BenchSpec(Spec):
    """A whole bench."""

    extends: None = Field(None, description="a preset or file whose keys hold where this file has none")
    name: str = Field(min_length=1)
    carrier_hz: Positive = 2.45e9
    sample_rate_hz: Positive = 5e6
    room_m: Point3 = Field((10.0, 8.0, 3.0), description="size of the room")
    waveform: WaveformSpec = WaveformSpec()
    radio: RadioSpec = RadioSpec()
    array: ArraySpec
    nodes: tuple[NodeSpec, ...] = Field(min_length=1)
    limits: LimitsSpec = LimitsSpec()
    link: LinkSpec = LinkSpec()
    world: WorldSpec = WorldSpec()

    @model_validator(mode="after")
    def _consistent(self) -> BenchSpec:
        half = self.sample_rate_hz / 2
        if not any(
            low <= self.carrier_hz - half and self.carrier_hz + half <= high for low, high in self.limits.frequencies_hz
        ):
            bands = ", ".join(f"[{low:g}, {high:g}]" for low, high in self.limits.frequencies_hz)
            raise ValueError(
                f"carrier_hz: {self.carrier_hz:g} +- {half:g} Hz is outside the allowed bands {bands}; "
                "change carrier_hz, or limits.frequencies_hz if your licence covers it"
            )
        for index, node in enumerate(self.nodes):
            if node.max_power_dbm > self.limits.max_power_dbm:
                raise ValueError(
                    f"nodes.{index}.max_power_dbm: {node.max_power_dbm:g} dBm exceeds limits.max_power_dbm = "
                    f"{self.limits.max_power_dbm:g} dBm"
                )
            if node.count > 1 and node.position_m is not None:
                raise ValueError(
                    f"nodes.{index}.position_m: {node.count} boards cannot stand at one point; leave it out"
                )
            if node.count > 1 and "{" not in node.name:
                raise ValueError(f"nodes.{index}.name: {node.count} boards need a pattern such as node-{{:02d}}")
            if node.count > 1 and node.radio.serial is not None:
                raise ValueError(f"nodes.{index}.radio.serial: {node.count} boards have one each; leave it out")
        for index, antenna in enumerate(self.array.antennas):
            if antenna.stage is not None and antenna.stage.speed_m_s > self.limits.max_speed_m_s:
                raise ValueError(
                    f"array.antennas.{index}.stage.speed_m_s: {antenna.stage.speed_m_s:g} m/s exceeds "
                    f"limits.max_speed_m_s = {self.limits.max_speed_m_s:g} m/s"
                )
        wave = self.waveform
        if wave.num_subcarriers % 16 or wave.num_active < wave.num_subcarriers // 2:
            raise ValueError(
                f"waveform: {wave.num_active} of {wave.num_subcarriers} subcarriers carry no preamble; "
                "num_subcarriers must be a multiple of 16 and num_active at least half of it"
            )
        if self.radio.trigger == "beacon" and self.radio.beacon_dbm > self.limits.max_power_dbm:
            raise ValueError(
                f"radio.beacon_dbm: {self.radio.beacon_dbm:g} dBm exceeds limits.max_power_dbm = "
                f"{self.limits.max_power_dbm:g} dBm"
            )
        names = self.node_names
        if len(set(names)) != len(names):
            raise ValueError("nodes: two nodes have the same name")
        return self

    @property
    def boards(self) -> tuple[NodeSpec, ...]:
        """Every node by itself, named and with count 1."""
        boards: list[NodeSpec] = []
        for node in self.nodes:
            for _ in range(node.count):
                name = node.name.format(len(boards)) if "{" in node.name else node.name
                radio = node.radio
                if radio.uri is not None and "{" in radio.uri:
                    radio = radio.model_copy(update={"uri": radio.uri.format(len(boards))})
                boards.append(node.model_copy(update={"name": name, "count": 1, "radio": radio}))
        return tuple(boards)

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(board.name for board in self.boards)

    @property
    def wavelength_m(self) -> float:
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    @property
    def movable(self) -> bool:
        """Whether any antenna has a stage."""
        return any(antenna.stage is not None for antenna in self.array.antennas)

    @property
    def bandwidth_hz(self) -> float:
        """The band that carries symbols."""
        return self.sample_rate_hz * self.waveform.num_active / self.waveform.num_subcarriers

    @property
    def start_std_s(self) -> float:
        """Standard deviation of a burst's start: the trigger's jitter, and half a sample where it is a beacon."""
        beacon_s = 0.5 / self.sample_rate_hz if self.radio.trigger == "beacon" else 0.0
        return math.hypot(self.radio.start_jitter_s, beacon_s)
