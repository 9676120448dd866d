"""GRBL 1.1h as its serial port shows it: bytes and time in, bytes out.

Behaviour follows the public source of GRBL 1.1h (github.com/gnea/grbl) and a dialogue recorded from it: states,
messages, error and alarm numbers and their order; `ok` for what is queued, not for what is done; the pause after an
alarm's message, in which even a reset is lost where the alarm is critical; no answer to `?` while homing or before the
reset that a critical alarm asks for; the answer that was still due before the greeting that follows a reset.

Left out: arcs (G2, G3) and probing (G38), which answer error 20; laser mode; parking.
"""

from __future__ import annotations

import math

import numpy as np

from sim_backend.emulators import grbl_report as report
from sim_backend.emulators.grbl_carriage import Machine
from sim_backend.emulators.grbl_core import HARD_LIMIT, Core, State
from sim_backend.emulators.grbl_program import Program, Steps, Wait
from sim_backend.emulators.grbl_settings import Eeprom


class GrblFirmware:
    """A GRBL controller and the machine it moves, pure, and not safe to share between threads.

    Args:
        eeprom: memory, kept by the caller where it has to outlive this object; the stock build's by default.
        machine: travel, switches and where the carriages stand; as long as the memory says by default.
        start_s: when it is switched on.
    """

    def __init__(self, eeprom: Eeprom | None = None, machine: Machine | None = None, *, start_s: float = 0.0) -> None:
        self.eeprom = Eeprom() if eeprom is None else eeprom
        if machine is None:
            x, y, z = (self.eeprom.settings[130 + axis] * 1e-3 for axis in range(3))
            machine = Machine(travel_m=(x, y, z))
        self._core = Core(self.eeprom, machine, start_s)
        self._power_up()

    @property
    def state(self) -> str:
        """As `?` calls it: "Idle", "Run", "Hold", "Jog", "Alarm", "Door", "Check", "Home" or "Sleep"."""
        return self._core.state.value

    @property
    def starts(self) -> int:
        """How often the motors have started from rest, homing not counted."""
        return self._core.starts

    @property
    def moving(self) -> bool:
        """Whether a motor turns."""
        return self._core.motion.moving or self._core.homing is not None

    def machine_m(self, now_s: float) -> np.ndarray:
        """Where the carriages really are.

        Args:
            now_s: when.

        Returns:
            machine frame, shape [3]: 0 at one end's switch, minus the travel at the other's.
        """
        self._go_to(now_s)
        return np.array(self._core.really_m())

    def feed(self, data: bytes, now_s: float) -> bytes:
        """Bytes arrive.

        Args:
            data: what the client sent.
            now_s: when; times before the last one count as that.

        Returns:
            everything said up to then, in order.
        """
        self._go_to(now_s)
        for byte in data:
            self._core.take(byte)
            self._act()
        return self._take_said()

    def advance(self, now_s: float) -> bytes:
        """Time passes; returns what is said on the way."""
        self._go_to(now_s)
        return self._take_said()

    def next_event_s(self, now_s: float) -> float | None:
        """When something happens by itself, the end of a line for instance; None where nothing does.

        Args:
            now_s: the present.
        """
        if self._core.said:
            return now_s
        event_s = self._next_s()
        return event_s if math.isfinite(event_s) else None

    def reset(self, now_s: float) -> bytes:
        """Power comes back, or somebody pulls DTR: the motors stop, and the firmware calls that place 0.

        Args:
            now_s: when.

        Returns:
            everything said until the greeting, that included.
        """
        self._go_to(now_s)
        self._power_up()
        return self._take_said()

    def lose_steps(self, way_m: float, now_s: float) -> None:
        """The carriages fall back by so much along the line in progress, and the firmware does not know."""
        self._go_to(now_s)
        self._core.lose(way_m)

    def hit_limit(self, now_s: float) -> bytes:
        """A limit switch closes, or noise on its wire; returns what is said."""
        self._go_to(now_s)
        if self._core.state is not State.ALARM and self._core.homing is None:
            self._core.alarm(HARD_LIMIT)
        return self._take_said()

    def _power_up(self) -> None:
        core = self._core
        core.freeze()
        core.call_place((0.0, 0.0, 0.0))
        core.state = State.ALARM if self.eeprom.on(22) else State.IDLE
        self._begin()

    def _begin(self) -> None:
        """What follows every reset."""
        self._core.reinitialise()
        self._program = Program(self._core)
        self._steps: Steps = self._program.run()
        self._wait: Wait = next(self._steps)
        self._act()

    def _act(self) -> None:
        """Let the program do all that it can do now."""
        core = self._core
        while True:
            if core.aborted:
                self._abort()
                return
            if core.asks_report and core.homing is None and core.halt is None:
                core.asks_report = False
                core.say(report.status(core))
            if core.quiet or not self._wait.ready():
                return
            self._wait = next(self._steps)

    def _abort(self) -> None:
        if self._program.executing:
            self._core.say("ok")
        self._steps.close()
        self._begin()

    def _next_s(self) -> float:
        wait_s = math.inf if self._core.quiet else self._wait.at_s
        return min(self._core.next_event_s(), wait_s)

    def _go_to(self, now_s: float) -> None:
        core = self._core
        while (event_s := self._next_s()) <= now_s:
            core.now_s = max(core.now_s, event_s)
            core.step()
            self._act()
        core.now_s = max(core.now_s, now_s)

    def _take_said(self) -> bytes:
        said = bytes(self._core.said)
        self._core.said.clear()
        return said
