"""What GRBL does at once, whatever its program is busy with: real-time bytes, motion, holds, alarms and resets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sim_backend.emulators.grbl_carriage import HOMING_DOOR, Carriages, HomingCycle, Machine, Place
from sim_backend.emulators.grbl_gcode import Parser
from sim_backend.emulators.grbl_motion import Motion
from sim_backend.emulators.grbl_settings import STEPS_PER_MM, Eeprom

HARD_LIMIT, SOFT_LIMIT, ABORTED, HOMING_RESET = 1, 2, 3, 6
RX_BYTES: Final = 128
"""Bytes that the firmware keeps unread; what comes on top is lost."""

_ALARM_PAUSE_S: Final = 0.5
"""After an alarm's message the firmware is busy for so long."""
_RESET, _DOOR, _JOG_CANCEL, _SPINDLE_STOP = 0x18, 0x84, 0x85, 0x9E
_FEED: Final = {0x90: 0, 0x91: 10, 0x92: -10, 0x93: 1, 0x94: -1}
_RAPID: Final = {0x95: 100, 0x96: 50, 0x97: 25}
_SPINDLE: Final = {0x99: 0, 0x9A: 10, 0x9B: -10, 0x9C: 1, 0x9D: -1}


class State(StrEnum):
    """What `?` calls it."""

    IDLE = "Idle"
    RUN = "Run"
    HOLD = "Hold"
    JOG = "Jog"
    ALARM = "Alarm"
    DOOR = "Door"
    CHECK = "Check"
    HOME = "Home"
    SLEEP = "Sleep"


@dataclass
class Overrides:
    """In percent, and how many reports until each optional field is due again."""

    feed: int = 100
    rapid: int = 100
    spindle: int = 100
    reports_to_wco: int = 0
    reports_to_ov: int = 0


@dataclass
class Halt:
    """The firmware says and hears nothing after an alarm.

    Attributes:
        until_s: when it goes on, infinite while it waits for a reset.
        critical: whether only a reset ends it.
    """

    until_s: float
    critical: bool


@dataclass
class Core:
    """Everything that does not wait for the program; see `grbl_program.Program` for the rest.

    Attributes:
        eeprom: settings and offsets.
        machine: what the motors drive.
        now_s: present time; whoever calls sets it.
        asks_report: a `?` that is to be answered.
        aborted: a reset that the program has to act on.
        starts: how often the motors have started from rest.
    """

    eeprom: Eeprom
    machine: Machine
    now_s: float = 0.0
    state: State = State.IDLE
    parser: Parser = field(default_factory=Parser)
    overrides: Overrides = field(default_factory=Overrides)
    rx: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)
    halt: Halt | None = None
    homing: HomingCycle | None = None
    held: bool = False
    cancelling: bool = False
    asks_report: bool = False
    aborted: bool = False
    starts: int = 0
    _stops_idle: bool = False
    _door_waits: bool = False

    def __post_init__(self) -> None:
        self.motion = Motion(self.eeprom)
        self.carriages = Carriages(self.machine)

    @property
    def suspended(self) -> bool:
        """Whether the program stands still until a hold ends."""
        return self.held or self.cancelling

    @property
    def quiet(self) -> bool:
        """Whether the program cannot act at all now."""
        return self.halt is not None or self.suspended

    def say(self, line: str) -> None:
        """Send one line."""
        self.said += line.encode("latin-1") + b"\r\n"

    # --- positions ----------------------------------------------------------------------------------------------------

    def believed_m(self) -> Place:
        """Machine position as the firmware counts it."""
        return self._metres(self.motion.steps(self.now_s))

    def believed_mm(self) -> Place:
        """The same in mm, as it is reported."""
        x, y, z = self.believed_m()
        return x * 1e3, y * 1e3, z * 1e3

    def really_m(self) -> Place:
        """Where the carriages are, machine frame."""
        if self.homing is not None:
            return self.homing.at(self.now_s)[0]
        return self.carriages.at_m(self.believed_m())

    def lose(self, way_m: float) -> None:
        """The carriages fall back along the line in progress; without one, along the first axis."""
        block = self.motion.block
        unit = (1.0, 0.0, 0.0) if block is None else block.unit
        self.carriages.shift([-way_m * part for part in unit])

    def sync_parser(self) -> None:
        """The next line starts where the motors are."""
        self.parser.at_mm = self.believed_mm()

    def call_place(self, believed_m: Place) -> None:
        """The firmware calls this place so; nothing moves."""
        per_mm = self.eeprom.per_axis(STEPS_PER_MM)
        x, y, z = (round(value * 1e3 * ratio) for value, ratio in zip(believed_m, per_mm, strict=True))
        self.motion.place((x, y, z))
        self.carriages.rename(self.believed_m())

    def recount(self) -> None:
        """The steps per mm have changed: the same steps mean another place."""
        self.carriages.rename(self.believed_m())

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_event_s(self) -> float:
        """When something happens by itself."""
        if self.halt is not None:
            return self.halt.until_s
        if self.homing is not None:
            return self.homing.ends_s
        return min(self.motion.next_event_s(), self._limit_s())

    def step(self) -> None:
        """Do what is due at `now_s`."""
        if self.halt is not None:
            self._end_halt(self.halt)
        elif self.homing is not None:
            if self.now_s >= self.homing.ends_s:
                self._end_homing(self.homing)
        elif self._limit_s() <= self.now_s:
            self.alarm(HARD_LIMIT)
        elif self.motion.next_event_s() <= self.now_s and self.motion.step(self.now_s):
            self._stopped()

    def _limit_s(self) -> float:
        """When the motors press or free a switch that matters."""
        block = self.motion.block
        if block is None or not self.motion.moving or not self.eeprom.on(21):
            return math.inf
        start_m = self.carriages.at_m(self._metres(block.start))
        way_m = self.carriages.changes_at_m(start_m, block.unit, self.motion.done_m(self.now_s))
        return self.motion.reaches_s(way_m) if way_m <= block.way_m else math.inf

    def _metres(self, steps: tuple[int, int, int]) -> Place:
        x, y, z = (n / ratio * 1e-3 for n, ratio in zip(steps, self.eeprom.per_axis(STEPS_PER_MM), strict=True))
        return x, y, z

    # --- motion -------------------------------------------------------------------------------------------------------

    def queue(self, target_mm: Place, *, asked_mm_min: float, rapid: bool = False, jog: bool = False) -> None:
        """Plan a line; a jog starts at once, the rest when the cycle starts."""
        x, y, z = target_mm
        target_m = (x * 1e-3, y * 1e-3, z * 1e-3)
        self.carriages.follow(self.believed_m())
        if not self.motion.queue(target_m, asked_m_s=asked_mm_min * 1e-3 / 60, rapid=rapid, fixed=jog):
            return
        if jog and self.state is State.IDLE:
            self.state = State.JOG
            self.starts += 1
        if self.state in (State.JOG, State.RUN):
            self.motion.start(self.now_s)

    def start_cycle(self) -> None:
        """Run what is planned, where nothing holds it."""
        if self.state is State.IDLE and self.motion.pending and not self.quiet:
            self.state = State.RUN
            self.starts += 1
            self.motion.start(self.now_s)

    def stop_for_soft_limit(self) -> None:
        """Brake what runs; the machine is idle afterwards."""
        self._stops_idle = True
        self.state = State.HOLD
        self.motion.hold(self.now_s)

    def pause(self) -> None:
        """`!`: brake, and go on at `~`."""
        if self.state in (State.ALARM, State.CHECK, State.SLEEP, State.HOME):
            return
        if self.state is State.JOG:
            self._cancel_jog()
        elif self.state is State.RUN:
            self.motion.hold(self.now_s)
            self.state = State.HOLD
        elif self.state is State.IDLE:
            self.state, self.held = State.HOLD, True

    def sleep(self) -> None:
        """`$SLP`: only a reset ends it."""
        self.state, self.held = State.SLEEP, True

    def _cancel_jog(self) -> None:
        self.cancelling = True
        self.motion.hold(self.now_s)

    def _open_door(self) -> None:
        if self.state in (State.ALARM, State.CHECK):
            return
        if self.homing is not None:
            self.alarm(HOMING_DOOR)
            return
        self.say("[MSG:Check Door]")
        if self.state is State.JOG:
            self._door_waits = True
            self._cancel_jog()
        elif self.state is not State.SLEEP:
            self.held = not self.motion.moving
            self.motion.hold(self.now_s)
            self.state = State.DOOR

    def _resume(self) -> None:
        if self.state in (State.HOLD, State.DOOR) and self.held:
            self.held, self.state = False, State.IDLE
            self.start_cycle()

    def _stopped(self) -> None:
        """The motors stand: at the end of all lines, or held."""
        self.carriages.follow(self.believed_m())
        if self.state in (State.HOLD, State.DOOR) and not self._stops_idle:
            self.held = True
            return
        if self.cancelling:
            self.motion.kill(self.now_s)
            self.sync_parser()
        self.cancelling = self._stops_idle = False
        self.state, self.held = (State.DOOR, True) if self._door_waits else (State.IDLE, False)
        self._door_waits = False

    # --- homing -------------------------------------------------------------------------------------------------------

    def home(self) -> None:
        """Begin `$H`."""
        self.carriages.follow(self.believed_m())
        self.state = State.HOME
        self.homing = HomingCycle(self.carriages, self.eeprom, self.really_m(), self.now_s)

    def _end_homing(self, homing: HomingCycle) -> None:
        if homing.alarm:
            self.alarm(homing.alarm)
            return
        names, known = homing.homed_m(), self.believed_m()
        homed = homing.homed_axes()
        x, y, z = (names[i] if i in homed else known[i] for i in range(3))
        self.carriages.put(homing.at(self.now_s)[0], known)
        self.homing = None
        self.call_place((x, y, z))
        self.sync_parser()

    # --- alarms and resets --------------------------------------------------------------------------------------------

    def alarm(self, code: int) -> None:
        """Stop the motors at once, say so, and be deaf for a while."""
        self.freeze()
        self.state = State.ALARM
        self.said += f"ALARM:{code}\r\n".encode()
        self.halt = Halt(self.now_s + _ALARM_PAUSE_S, critical=code in (HARD_LIMIT, SOFT_LIMIT))

    def freeze(self) -> None:
        """The motors stop where they are."""
        if self.homing is not None:
            really_m, counted_m = self.homing.at(self.now_s)
            self.homing = None
            self.carriages.put(really_m, counted_m)
            self.call_place(counted_m)
        self.motion.kill(self.now_s)
        self.carriages.follow(self.believed_m())

    def reinitialise(self) -> None:
        """What a reset forgets; position and alarm stay."""
        self.freeze()
        self.motion.feed_share = self.motion.rapid_share = 1.0
        self.parser = Parser(coordinates_mm=self.eeprom.offsets_mm["G54"])
        self.overrides = Overrides()
        self.rx.clear()
        self.halt = None
        self.held = self.cancelling = self.asks_report = self.aborted = False
        self._stops_idle = self._door_waits = False
        self.state = State.ALARM if self.state in (State.ALARM, State.SLEEP) else State.IDLE
        self.sync_parser()

    def _end_halt(self, halt: Halt) -> None:
        if halt.critical:
            halt.until_s = math.inf
            self.say("[MSG:Reset to continue]")
        else:
            self.halt, self.aborted = None, True

    def _soft_reset(self) -> None:
        if self.halt is not None:
            # before the message to reset, the firmware throws a reset away
            self.aborted = self.aborted or math.isinf(self.halt.until_s)
        elif self.homing is not None:
            self.alarm(HOMING_RESET)
        elif self.motion.moving:
            self.alarm(ABORTED)
        else:
            self.aborted = True

    # --- bytes --------------------------------------------------------------------------------------------------------

    def take(self, byte: int) -> bool:
        """Act on a real-time byte at once, or keep the byte for the program.

        Returns:
            whether it was a real-time byte.
        """
        if byte == _RESET:
            self._soft_reset()
        elif byte in b"?!~" or byte >= 0x80:
            if self.halt is None:
                self._real_time(byte)
        else:
            if len(self.rx) < RX_BYTES:
                self.rx.append(byte)
            return False
        return True

    def _real_time(self, byte: int) -> None:
        if byte == ord("?"):
            self.asks_report = True
        elif byte == ord("!"):
            self.pause()
        elif byte == ord("~"):
            self._resume()
        elif byte == _DOOR:
            self._open_door()
        elif byte == _JOG_CANCEL and self.state is State.JOG and not self.cancelling:
            self._cancel_jog()
        elif byte in _FEED:
            self._override("feed", _FEED[byte], least=10)
        elif byte in _SPINDLE:
            self._override("spindle", _SPINDLE[byte], least=10)
        elif byte in _RAPID and self.overrides.rapid != _RAPID[byte]:
            self.overrides.rapid, self.overrides.reports_to_ov = _RAPID[byte], 0
            self._replan()

    def _override(self, what: str, change: int, *, least: int) -> None:
        """Change a percentage; a change of 0 means back to 100."""
        before = self.overrides.feed if what == "feed" else self.overrides.spindle
        after = min(max(before + change, least), 200) if change else 100
        if after == before:
            return
        self.overrides.reports_to_ov = 0
        if what == "feed":
            self.overrides.feed = after
            self._replan()
        else:
            self.overrides.spindle = after

    def _replan(self) -> None:
        self.motion.feed_share, self.motion.rapid_share = self.overrides.feed / 100, self.overrides.rapid / 100
        if self.state in (State.RUN, State.JOG) and self.motion.moving and not self.cancelling:
            self.motion.start(self.now_s)
