"""An instance of MA-OTA's whole problem as a TOML file, and its answer, for `testbed solve ma-ota`."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from testbed.opt.solution import Solution
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.instance import Answer, Instance
from testbed.problems.ma_ota.beams import ClientArrays
from testbed.problems.ma_ota.bound import Constants
from testbed.problems.ma_ota.budget import ClientCosts, uplink_s
from testbed.problems.ma_ota.instance_tables import (
    AnyClient,
    DownlinkSpec,
    DrawnChannel,
    Limits,
    MotionSpec,
    OneClient,
    RoundsGrid,
    ServerSpec,
)
from testbed.problems.ma_ota.placements import PLACERS
from testbed.problems.ma_ota.rounds import Broadcast, Deployment, Motion, Plan, solve
from testbed.problems.ma_ota.schedule import Budget, Grid, Server
from testbed.problems.ma_ota.selection import jain, missed_turns

_TOLERANCE = 1e-9


class MaOtaInstance(Instance):
    """Movable antennas and over-the-air aggregation: rounds, batches, CPU frequencies, clients, places and beams."""

    methods: ClassVar[tuple[str, ...]] = ("pdd", "sca", "ao", "pso", "grid", "sdr", "random", "fixed")

    seed: int = Field(1, ge=0, description="of drawn channels and of the optimiser's starts")
    reading: Literal["receive", "downlink", "clients"] = Field(
        "receive",
        description="what is beamformed: the base station's receive combiner; also its downlink beam; or clients of"
        " several antennas too",
    )
    num_antennas: int = Field(ge=1, description="N, movable antennas of the base station")
    wavelength_m: float = Field(gt=0, description="lambda")
    region_m: tuple[float, float] = Field(description="width and height of where antennas may be; a line has height 0")
    min_spacing_m: float | None = Field(None, gt=0, description="D, least distance of antennas; half a wave if absent")
    home_m: tuple[tuple[float, float], ...] | None = Field(
        None, description="[x, y] of the fixed array's antennas; in rows half a wave apart, centred, if absent"
    )
    client_antennas: int = Field(1, ge=1, description="antennas of a client, half a wave apart (reading clients)")
    num_values: int = Field(ge=1, description="d, values of an update")
    bandwidth_hz: float = Field(gt=0, description="B, symbols in a second; each carries two values")
    overhead: float = Field(0.0, ge=0, description="o, cyclic prefixes and pilots relative to data")
    noise_w: float = Field(gt=0, description="sigma^2, noise power of one received symbol")
    concurrency: int | None = Field(None, ge=1, description="K, clients that send at once; any number if absent")
    fairness: float = Field(0.0, ge=0, description="omega, what a missed turn is worth, in units of Phi")
    participation: tuple[int, ...] | None = Field(None, description="rounds each client took part in so far")
    num_starts: int = Field(6, ge=1, description="starts of each search for places, the fixed array among them")
    candidates: int = Field(5, ge=1, description="sets of clients that get places of their own in each ranking")
    client: AnyClient = AnyClient()
    clients: tuple[OneClient, ...] = Field((), description="one table for each client")
    draw: DrawnChannel | None = Field(None, description="draws channels of clients that list no paths")
    bound: Constants = Field(description="constants of the convergence bound")
    budget: Limits
    rounds: RoundsGrid = RoundsGrid()
    server: ServerSpec = ServerSpec()
    downlink: DownlinkSpec = DownlinkSpec()
    motion: MotionSpec | None = None

    @property
    def num_clients(self) -> int:
        """M."""
        return len(self.clients) or (self.draw.num_clients if self.draw else 0)

    @property
    def spacing_m(self) -> float:
        """D."""
        return self.wavelength_m / 2.0 if self.min_spacing_m is None else self.min_spacing_m

    @model_validator(mode="after")
    def _clients_fit(self) -> MaOtaInstance:
        if self.num_clients == 0:
            raise ValueError("clients: there are none; list [[clients]] with their paths, or add [draw]")
        if self.draw is None:
            silent = [row for row, client in enumerate(self.clients) if client.paths is None]
            if silent:
                raise ValueError(
                    f"clients.{silent[0]}.paths: this client has no channel; give its paths, or add [draw]"
                )
        elif (
            self.clients and "num_clients" in self.draw.model_fields_set and self.draw.num_clients != len(self.clients)
        ):
            raise ValueError(
                f"draw.num_clients: {self.draw.num_clients} clients are drawn, {len(self.clients)} are listed;"
                " leave num_clients out, or list as many"
            )
        if self.concurrency is not None and self.concurrency > self.num_clients:
            raise ValueError(
                f"concurrency: {self.concurrency} clients cannot send at once, there are {self.num_clients};"
                " lower it, or add clients"
            )
        if self.participation is not None and (
            len(self.participation) != self.num_clients or min(self.participation) < 0
        ):
            raise ValueError(
                f"participation: it must hold {self.num_clients} counts, one for each client, none below 0;"
                " count each client's rounds"
            )
        return self

    @model_validator(mode="after")
    def _antennas_fit(self) -> MaOtaInstance:
        if min(self.region_m) < 0 or max(self.region_m) == 0:
            raise ValueError("region_m: an array needs a line or an area; write [width, height] in metres")
        columns, rows = self._places(self.spacing_m)
        if self.home_m is None and columns * rows < self.num_antennas:
            raise ValueError(
                f"num_antennas: {self.num_antennas} antennas {self.spacing_m:.4g} m apart do not fit on"
                f" {self.region_m[0]:.4g} m x {self.region_m[1]:.4g} m, {columns * rows} do;"
                " widen region_m, or take fewer antennas"
            )
        if self.home_m is not None:
            if len(self.home_m) != self.num_antennas:
                raise ValueError(
                    f"home_m: {len(self.home_m)} places for {self.num_antennas} antennas; list one for each"
                )
            beyond_m = self.aperture.violation_m(self.aperture.home_m)
            if beyond_m > _TOLERANCE * self.wavelength_m:
                raise ValueError(
                    f"home_m: the fixed array breaks region or spacing by {beyond_m:.4g} m; move its antennas apart"
                )
        if self.reading == "clients":
            if self.client_antennas < 2:
                raise ValueError("client_antennas: the reading clients is about several; write 2 or more")
            flat = [
                row for row, client in enumerate(self.clients) if any(len(path) == 4 for path in client.paths or ())
            ]
            if flat:
                raise ValueError(
                    f"clients.{flat[0]}.paths: a client's beam needs the waves' departures;"
                    " add a fifth number to each wave"
                )
        return self

    @property
    def aperture(self) -> Aperture:
        """Region, spacing and fixed array."""
        region_m = np.array([[0.0, self.region_m[0]], [0.0, self.region_m[1]]])
        home_m = self._rows() if self.home_m is None else np.array(self.home_m)
        return Aperture(home_m, np.ones(len(home_m), bool), region_m, self.spacing_m, self.wavelength_m)

    def solve(self, method: str) -> Answer:
        """Solve the instance; see `Instance.solve`."""
        deployment = self.deployment()
        rng = np.random.default_rng([self.seed, 1])
        solution = solve(
            deployment, PLACERS[method], rng=rng, num_starts=self.num_starts, candidates=self.candidates
        )  # fmt: skip
        return Answer(solution, _decisions(solution, self._counts()))

    def deployment(self) -> Deployment:
        """The instance as arrays."""
        paths, departures = self._channel()
        num_clients = self.num_clients
        std = np.full(num_clients, math.sqrt(self.bound.alpha1 / self.num_values))
        if self.client.update_std is not None or any(client.update_std is not None for client in self.clients):
            std = np.array([std[0] if value is None else value for value in self._each("update_std")])
        limits_j = np.array([math.inf if value is None else value for value in self._each("max_energy_j")])
        costs = ClientCosts(
            np.array(self._each("num_samples")),
            np.array(self._each("cycles_per_sample")),
            np.array(self._each("capacitance")),
            np.array(self._each("max_cpu_hz")),
            limits_j,
        )
        bits = self.downlink.bits_per_value * self.num_values
        rate_bit_s = self.downlink.rate_bit_s
        own = np.arange(self.client_antennas) * self.wavelength_m / 2.0
        energy_j = self.budget.energy_j
        return Deployment(
            paths, self.aperture, std, np.array(self._each("max_power_w")), self.num_values, self.noise_w, costs,
            self.bound, Budget(self.budget.latency_s, math.inf if energy_j is None else energy_j), self._grid(),
            Server(self.server.cycles_per_sample, self.server.capacitance, self.server.cpu_hz),
            uplink_s(self.num_values, self.bandwidth_hz, overhead=self.overhead),
            downlink_s=0.0 if rate_bit_s is None else bits / rate_bit_s,
            concurrency=self.concurrency,
            queues=missed_turns(self._counts()),
            fairness=self.fairness,
            arrays=ClientArrays(departures, own) if self.reading == "clients" else None,
            broadcast=self._broadcast(bits) if self.reading == "downlink" else None,
            motion=self._motion(),
        )  # fmt: skip

    def _each(self, name: str) -> list[Any]:
        """One key of every client: its own, or that of `[client]`."""
        common = getattr(self.client, name)
        own = [getattr(client, name) for client in self.clients] or [None] * self.num_clients
        return [common if value is None else value for value in own]

    def _counts(self) -> np.ndarray:
        return np.zeros(self.num_clients) if self.participation is None else np.array(self.participation, np.float64)

    def _grid(self) -> Grid:
        tried = self.rounds
        return Grid(
            tuple(range(tried.fine_tuning[0], tried.fine_tuning[1] + 1)),
            tuple(range(tried.pre_training[0], tried.pre_training[1] + 1)),
            tried.pretraining_batches,
        )

    def _broadcast(self, bits: float) -> Broadcast:
        noise_w = np.array(self._each("downlink_noise_w"))
        return Broadcast(bits, self.downlink.bandwidth_hz, self.downlink.power_w, noise_w)

    def _motion(self) -> Motion | None:
        if self.motion is None:
            return None
        return Motion(
            self.aperture.home_m, self.motion.speed_m_s, self.motion.motor_power_w, self.motion.every_round
        )  # fmt: skip

    def _channel(self) -> tuple[PathSet, np.ndarray]:
        """Plane waves of all clients, and their cosines of departure, shape [num_clients, num_paths]."""
        drawn, departures = None, np.zeros((self.num_clients, 0))
        if self.draw is not None:
            rng = np.random.default_rng([self.seed, 0])
            drawn = PathSet.draw(
                rng, self.num_clients, self.draw.num_paths, self.wavelength_m, rician_k=self.draw.rician_k
            )  # fmt: skip
            drawn = drawn.scaled(np.sqrt(self._each("path_gain")))
            departures = rng.uniform(-1.0, 1.0, drawn.gains.shape)
        listed = [client.paths for client in self.clients] or [None] * self.num_clients
        most = max([departures.shape[1], *(len(paths) for paths in listed if paths is not None)])
        # [num_clients, most, 5]
        waves = np.zeros((self.num_clients, most, 5))
        for row, paths in enumerate(listed):
            if paths is not None:
                waves[row, : len(paths)] = [(*path, 0.0)[:5] for path in paths]
            elif drawn is not None:
                width = departures.shape[1]
                waves[row, :width, :2] = drawn.directions[row]
                waves[row, :width, 2], waves[row, :width, 3] = drawn.gains[row].real, drawn.gains[row].imag
                waves[row, :width, 4] = departures[row]
        gains = waves[..., 2] + 1j * waves[..., 3]
        return PathSet(waves[..., :2], gains, self.wavelength_m), waves[..., 4]

    def _places(self, step_m: float) -> tuple[int, int]:
        """Columns and rows of antennas that the region holds."""
        columns, rows = (int(length_m / step_m + _TOLERANCE) + 1 for length_m in self.region_m)
        return columns, rows

    def _rows(self) -> np.ndarray:
        """The fixed array: as few rows as possible, half a wave apart where they fit, centred."""
        step_m = max(self.spacing_m, self.wavelength_m / 2.0)
        columns, rows = self._places(step_m)
        if columns * rows < self.num_antennas:
            step_m = self.spacing_m
            columns, rows = self._places(step_m)
        index = np.arange(self.num_antennas)
        place_m = np.stack([index % columns, index // columns], axis=1) * step_m
        middle_m = (place_m.max(axis=0) + place_m.min(axis=0)) / 2.0
        return np.clip(place_m - middle_m + np.array(self.region_m) / 2.0, 0.0, self.region_m)


def _decisions(solution: Solution[Plan | None], counts: np.ndarray) -> dict[str, Any]:
    """What was decided, JSON-ready; empty where there is no plan."""
    plan = solution.point
    if plan is None:
        return {
            "positions_m": [], "combiner_re": [], "combiner_im": [], "selected": [], "batch_sizes": [], "cpu_hz": [],
            "rounds": {"fine_tuning": 0, "pre_training": 0},
        }  # fmt: skip
    schedule, combiner = plan.schedule, plan.placement.combiner
    counted = counts.copy()
    counted[list(plan.selected)] += 1.0
    decided: dict[str, Any] = {
        "positions_m": plan.placement.positions_m.tolist(),
        "combiner_re": combiner.real.tolist(),
        "combiner_im": combiner.imag.tolist(),
        "selected": list(plan.selected),
        "batch_sizes": [int(size) for size in schedule.batches.batch_sizes],
        "cpu_hz": schedule.batches.cpu_hz.tolist(),
        "rounds": {
            "fine_tuning": schedule.fine_tuning,
            "pre_training": schedule.pre_training,
            "pretraining_batch": schedule.pretraining_batch,
        },
        "power_w": plan.power_w.tolist(),
        "gain": plan.placement.gain,
        "backoff": schedule.batches.backoff,
        "expected_mse": schedule.error,
        "bound": {name: getattr(schedule.bound, name) for name in schedule.bound.__dataclass_fields__},
        "latency_s": schedule.latency_s,
        "energy_j": schedule.energy_j,
        "travel_s": plan.travel_s,
        "jain": jain(counted),
    }
    if plan.downlink_beam is not None:
        decided["downlink"] = {
            "beam_re": plan.downlink_beam.real.tolist(),
            "beam_im": plan.downlink_beam.imag.tolist(),
            "rate_bit_s": plan.downlink_rate_bit_s,
        }
    if plan.client_beams is not None:
        decided["client_beams_re"] = plan.client_beams.real.tolist()
        decided["client_beams_im"] = plan.client_beams.imag.tolist()
    return decided
