"""A dry run: what would be asked of the bench, how long it would take, and whether a limit would refuse it.

Nothing moves, radiates or trains. Channels are drawn from a free-space guess, updates are zeros of unit spread and
every node is taken to own as many rows, so a scheme's decisions are typical ones, not those of the real run.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from testbed.core.adapter import Adapter, Layout
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.motion import travel_time_s
from testbed.core.orders import (
    WHOLE,
    Alignment,
    Analogue,
    Collect,
    Collected,
    Digital,
    Evaluate,
    Ideal,
    LocalResult,
    MajorityVote,
    Move,
    Moved,
    MovedAndTrained,
    OneBit,
    Order,
    Publish,
    Published,
    Reply,
    Scores,
    Sound,
    Sounding,
    Spent,
    Together,
    Train,
    Trained,
    Uplink,
    Work,
)
from testbed.core.scheme import Scheme
from testbed.core.specs import AlignmentSpec
from testbed.core.units import dbm_to_w, from_db
from testbed.engine.config import ExperimentSpec
from testbed.engine.crew import check_folding
from testbed.engine.limits import check_aligns, check_needs, check_order, claimed_capabilities
from testbed.engine.live import published_values
from testbed.engine.perform import perform
from testbed.engine.sums import air_time
from testbed.lora import parcel
from testbed.lora.choice import part_mask
from testbed.lora.llama_layout import llama_work_share
from testbed.lora.model_layout import adapter_layout
from testbed.phy import budget, ofdm, voting
from testbed.phy import sounding as pilots
from testbed.phy.coding_schemes import SCHEMES, choose, scheme_named

_BUILTIN = {"builtin:tiny": ("nodes", "builtin/tiny")}
_BOLTZMANN_J_K = 1.380649e-23
_MANNER = {
    Ideal: "over error-free links",
    Digital: "in packets",
    Analogue: "as a sum through the air",
    OneBit: "as one-bit votes through the air",
    MajorityVote: "as a majority vote through the air",
}


@dataclass(frozen=True)
class DryStep:
    """One order that would be asked, in words, and what it would take."""

    index: int
    round_index: int
    order: str
    seconds: float
    air_time_s: float
    travel_m: float
    joules: float
    note: str = ""


def dry_experiment(experiment: ExperimentSpec, scheme: Scheme[Any], bench: BenchSpec) -> list[DryStep]:
    """Every order of the experiment, checked against the bench's limits.

    Raises:
        LimitError: the first order that the bench would refuse.
        ConfigError: the bench lacks what the scheme needs, or the model's size cannot be known here.
    """
    layout = adapter_layout(_model_config(experiment.model.base), experiment.lora)
    rng = np.random.default_rng([experiment.seed, 0])
    adapter = Adapter(layout=layout, initial=np.zeros(layout.size, np.float32))
    answerer = DryBench(bench, experiment, layout, rng)
    check_needs(experiment.scheme.name, scheme.needs, claimed_capabilities(bench), bench, scheme.instead)
    check_aligns(experiment.scheme.name, scheme, experiment.alignment)
    steps: list[DryStep] = []

    def answer(order: Order) -> Reply:
        reply = answerer.answer(order)
        spent = reply.spent
        words, note = describe(order), answerer.note
        steps.append(
            DryStep(
                len(steps),
                answerer.round_index,
                words,
                spent.seconds,
                spent.air_time_s,
                spent.travel_m,
                spent.joules,
                note,
            )
        )
        return reply

    state = scheme.start(Fleet.of(bench, dict.fromkeys(bench.node_names, 1)), adapter)
    answer(Evaluate(scheme.personal))
    for index in range(1, experiment.rounds + 1):
        answerer.round_index = index
        state = perform(scheme.round(state, np.random.default_rng([experiment.seed, index])), answer)
        last = index == experiment.rounds or scheme.done(state)
        if last or index % experiment.evaluate_every == 0:
            answer(Evaluate(scheme.personal))
        if last:
            break
    return steps


def describe(order: Order) -> str:
    """The order in words."""
    match order:
        case Sound(nodes=nodes, num_pilots=num_pilots):
            return f"sound {len(nodes) or 'all'} nodes, {num_pilots} pilot symbols each"
        case Move(positions_m=positions_m):
            return f"move {len(positions_m)} antennas"
        case Train(work=work):
            aligning = any(one.objective is not None for one in work.values())
            return f"{'align' if aligning else 'train'} {len(work)} nodes"
        case Collect(uplinks=uplinks):
            kind = next((_MANNER[type(uplink)] for uplink in uplinks.values()), "in no way")
            return f"collect from {len(uplinks)} nodes {kind}"
        case Publish(adapter=adapter, fold=fold, fold_rank=fold_rank, part=part):
            folded = "" if fold is None else f" and {fold.size} of rank {fold_rank} to fold into the base"
            return f"publish {'' if part == WHOLE else 'a part of '}{adapter.size} values{folded}"
        case Evaluate(personal=personal):
            return f"score the held-out split{', each node its own part' if personal else ''}"
        case Together(move=move, train=train):
            return f"{describe(move)} while {describe(train)}"
        case _:
            assert_never(order)


@dataclass
class DryBench:
    """Answers orders from assumptions alone; antennas start at home."""

    bench: BenchSpec
    experiment: ExperimentSpec
    layout: Layout
    rng: np.random.Generator
    round_index: int = 0
    note: str = ""
    positions_m: np.ndarray = field(init=False)

    @property
    def num_values(self) -> int:
        """Length of the adapter vector."""
        return self.layout.size

    def __post_init__(self) -> None:
        self.positions_m = np.array([antenna.home_m for antenna in self.bench.array.antennas])

    def answer(self, order: Order) -> Reply:
        """A plausible reply. Raises LimitError where the bench would refuse the order."""
        check_order(order, self.bench, self.num_values, self.layout)
        self.note = ""
        match order:
            case Sound():
                return self._sound(order)
            case Move():
                return self._move(order)
            case Train():
                return self._train(order)
            case Collect():
                return self._collect(order)
            case Publish():
                check_folding(order, self.experiment.model)
                num_values = published_values(order, self.layout)
                seconds = 32.0 * num_values / self.bench.link.downlink_bit_s
                return Published(spent=Spent(seconds, self.bench.link.server_power_w * seconds, seconds))
            case Evaluate():
                return Scores(loss=0.0, num_tokens=1, num_rows=1)
            case Together(move=move, train=train):
                moved, trained = self._move(move), self._train(train)
                spent = replace(moved.spent + trained.spent, seconds=max(moved.spent.seconds, trained.spent.seconds))
                return MovedAndTrained(moved, trained, spent)
            case _:
                assert_never(order)

    def _sound(self, order: Sound) -> Sounding:
        names = order.nodes or self.bench.node_names
        boards = {board.name: board for board in self.bench.boards}
        room = np.array(self.bench.room_m)
        # [num_nodes]
        distance_m = np.array(
            [
                np.linalg.norm(np.array(boards[name].position_m or room / 2) - np.array(self.bench.array.origin_m))
                for name in names
            ]
        )
        amplitude = self.bench.wavelength_m / (4 * np.pi * np.maximum(distance_m, 0.5))
        phase = self.rng.uniform(0, 2 * np.pi, (len(self.bench.array.antennas), len(names)))
        channel = amplitude * np.exp(1j * phase)
        # [num_antennas, num_nodes, num_active]
        response = np.repeat(channel[:, :, None], self.bench.waveform.num_active, axis=2).astype(np.complex64)
        world = self.bench.world
        noise_w = _BOLTZMANN_J_K * world.temperature_k * from_db(world.noise_figure_db) * self.bench.bandwidth_hz
        waveform = self.bench.waveform
        slot_s = pilots.length(order.num_pilots, waveform) / waveform.elements_per_second(self.bench.sample_rate_hz)
        seconds = len(names) * slot_s
        joules = sum(dbm_to_w(boards[name].max_power_dbm) for name in names) * seconds / len(names)
        self.note = "channels assumed: free space, random phase"
        return Sounding(
            tuple(names),
            channel,
            noise_w,
            self.positions_m,
            delay_s=np.zeros(len(names)),
            cfo_hz=np.zeros(len(names)),
            heard_s=np.zeros(len(names)),
            response=response if order.per_subcarrier else None,
            spent=Spent(seconds, joules, seconds),
        )

    def _move(self, order: Move) -> Moved:
        way_m = np.linalg.norm(order.positions_m - self.positions_m, axis=1)
        seconds, joules = 0.0, 0.0
        for antenna, way in zip(self.bench.array.antennas, way_m, strict=True):
            if antenna.stage is None or way == 0:
                continue
            stage = antenna.stage
            moving_s = travel_time_s(way, stage.speed_m_s, stage.acceleration_m_s2)
            seconds = max(seconds, moving_s + stage.settle_s)
            joules += stage.power_w * moving_s
        self.positions_m = order.positions_m
        return Moved(order.positions_m, Spent(float(seconds), float(joules), 0.0, float(way_m.sum())))

    def _train(self, order: Train) -> Trained:
        boards = {board.name: board for board in self.bench.boards}
        training = self.experiment.training
        step_size = training.learning_rate if training.optimizer == "sgd" and training.momentum == 0 else 0.0
        results = {}
        for name, work in order.work.items():
            rows = (work.local_steps or training.local_steps or 0) * (work.batch_size or training.batch_size)
            tokens = rows * training.gradient_accumulation * training.sequence_length
            if work.objective is not None and self.experiment.alignment is not None:
                tokens = _alignment_tokens(work.objective, self.experiment.alignment)
            board = boards[name]
            cpu_hz = work.cpu_hz or board.cpu_hz
            share, ratio = self._pruned(work)
            seconds = budget.compute_seconds(tokens * share, board.cycles_per_token, cpu_hz)
            joules = budget.compute_joules(tokens * share, board.cycles_per_token, cpu_hz, board.kappa)
            steps = work.local_steps or training.local_steps or 0
            # the energy that pruning takes out is known only with the weights; the ratio is its chord
            results[name] = LocalResult(
                0.0, 0.0, 0.0, 1, tokens, 0.0, 1.0, seconds, joules, steps, step_size, share, ratio, ratio
            )
        self.note = "at most: every row as long as training.sequence_length"
        if training.local_steps is None:
            self.note = "local_epochs: the length of training is known only with the data"
        link, drifts = self.bench.link, any(work.drift is not None for work in order.work.values())
        downlink_s = 32.0 * self.num_values / link.downlink_bit_s if drifts else 0.0
        spent = Spent(max((r.seconds for r in results.values()), default=0.0), sum(r.joules for r in results.values()))
        return Trained(results, spent=spent + Spent(downlink_s, link.server_power_w * downlink_s, downlink_s))

    def _pruned(self, work: Work) -> tuple[float, float]:
        """Operations of a token relative to the whole model, and the share of weights that is taken out."""
        if work.pruning is None:
            return 1.0, 0.0
        if work.pruning.kind == "unstructured":
            return 1.0, work.pruning.ratio
        config = _model_config(self.experiment.model.base)
        return llama_work_share(config, self.experiment.lora, work.pruning.ratio)

    def _collect(self, order: Collect) -> Collected:
        result = np.zeros(self.num_values, np.float32)
        waveform, rate_hz = self.bench.waveform, self.bench.waveform.elements_per_second(self.bench.sample_rate_hz)
        first = next(iter(order.uplinks.values()))
        match first:
            case Ideal() | Digital():
                times = {name: self._parcel_s(uplink) for name, uplink in order.uplinks.items()}
                self.note = "packets: none is lost" if isinstance(first, Digital) else ""
            case Analogue() | OneBit():
                length = air_time(ofdm.num_symbols_of(self.num_values), waveform)
                times = dict.fromkeys(order.uplinks, length / rate_hz)
            case MajorityVote():
                length = air_time(voting.fsk_num_symbols(self.num_values, waveform), waveform)
                times = dict.fromkeys(order.uplinks, length / rate_hz)
            case _:
                assert_never(first)
        energy_j = {name: _power_w(uplink) * times[name] for name, uplink in order.uplinks.items()}
        left_s = {name: max(times[name] - _head_start_s(uplink), 0.0) for name, uplink in order.uplinks.items()}
        seconds = min(max(left_s.values()), math.inf if order.deadline_s is None else order.deadline_s)
        spent = Spent(seconds, sum(energy_j.values()), seconds)
        if not isinstance(first, Ideal | Digital):
            return Collected(result, energy_j=energy_j, spent=spent)
        limit_s = math.inf if order.deadline_s is None else order.deadline_s * (1 + 1e-9)
        late = tuple(name for name in order.uplinks if left_s[name] > limit_s)
        covered = {
            name: part_mask(self.layout, uplink.payload.part)
            for name, uplink in order.uplinks.items()
            if isinstance(uplink, Ideal | Digital) and name not in late and not parcel.is_whole(uplink.payload)
        }
        updates = {name: result for name in order.uplinks if name not in late}
        return Collected(result, updates, covered, late, energy_j=energy_j, spent=spent)

    def _parcel_s(self, uplink: Uplink) -> float:
        """Air time of one node's bytes when nothing is lost."""
        assert isinstance(uplink, Ideal | Digital)
        num_bits = 8.0 * parcel.typical_bytes(self.layout, uplink.payload)
        if isinstance(uplink, Ideal):
            return budget.digital_air_time_s(num_bits, uplink.rate_bit_s)
        scheme = scheme_named(uplink.scheme) if uplink.scheme else choose(uplink.snr) or SCHEMES[0]
        waveform = self.bench.waveform
        prefix = waveform.num_subcarriers / (waveform.num_subcarriers + waveform.cyclic_prefix)
        return budget.digital_air_time_s(num_bits, scheme.bits_per_symbol * uplink.bandwidth_hz * prefix)


def _alignment_tokens(objective: Alignment, spec: AlignmentSpec) -> int:
    """At most: both responses of every pair, or samples that are drawn once and trained on in every pass."""
    sampled = (objective.method or spec.method) == "ppo"
    rows = spec.batch_size * (spec.group * (1 + spec.epochs) if sampled else 2)
    return (objective.steps or spec.steps) * rows * spec.length


def _head_start_s(uplink: Uplink) -> float:
    return uplink.head_start_s if isinstance(uplink, Ideal) else 0.0


def _power_w(uplink: Uplink) -> float:
    match uplink:
        case Analogue() | OneBit():
            return float(np.mean(np.abs(uplink.precoder) ** 2))
        case Ideal() | Digital() | MajorityVote():
            return uplink.power_w
        case _:
            assert_never(uplink)


def _model_config(base: str) -> dict[str, Any]:
    """`config.json` of a builtin model or a local folder."""
    folder = Path(base)
    if base in _BUILTIN:
        package, path = _BUILTIN[base]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / path
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"the size of the adapter is unknown: {base} is not on this machine",
            key="model.base",
            remedy="give a local folder with its config.json, or builtin:tiny",
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    return dict(content)
