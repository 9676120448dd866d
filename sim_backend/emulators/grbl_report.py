"""What GRBL says about itself: the status line of `?` and the bracketed lines of `$G`, `$#` and `$I`."""

from __future__ import annotations

from typing import Final

from sim_backend.emulators.grbl_core import RX_BYTES, Core, State
from sim_backend.emulators.grbl_motion import CAPACITY
from sim_backend.emulators.grbl_settings import AXES, OFFSETS

GREETING: Final = "\r\nGrbl 1.1h ['$' for help]"
HELP: Final = "[HLP:$$ $# $G $I $N $x=val $Nx=line $J=line $SLP $C $X $H ~ ! ? ctrl-x]"
LOCKED: Final = "[MSG:'$H'|'$X' to unlock]"

_BUSY: Final = (State.HOME, State.RUN, State.HOLD, State.JOG, State.DOOR)
_WCO_IDLE, _WCO_BUSY, _OV_IDLE, _OV_BUSY = 10, 30, 10, 20
_MM_PER_INCH: Final = 25.4


def status(core: Core) -> str:
    """The answer to `?`; it counts down to the fields that are not in every answer."""
    machine_mm, offset_mm = core.believed_mm(), core.parser.work_offset_mm()
    mask = int(core.eeprom.settings[10])
    fields = [_state(core)]
    if mask & 1:
        fields.append("MPos:" + _axes(core, machine_mm))
    else:
        x, y, z = (at - zero for at, zero in zip(machine_mm, offset_mm, strict=True))
        fields.append("WPos:" + _axes(core, (x, y, z)))
    if mask & 2:
        fields.append(f"Bf:{CAPACITY - core.motion.pending},{RX_BYTES - len(core.rx)}")
    turning = core.parser.modal.spindle != "M5"
    rpm = core.parser.spindle_rpm * core.overrides.spindle / 100 if turning else 0.0
    fields.append(f"FS:{_rate(core, core.motion.speed_m_s(core.now_s) * 60e3)},{rpm:.0f}")
    if pins := _pins(core):
        fields.append("Pn:" + pins)
    _add_rare(core, fields, offset_mm)
    return "<" + "|".join(fields) + ">"


def modes(core: Core) -> str:
    """What `$G` prints."""
    parser = core.parser
    m = parser.modal
    words = (m.motion, m.offset, m.plane, m.units, m.reach, m.feed, m.spindle, m.coolant, f"T{parser.tool}")
    return f"[GC:{' '.join(words)} F{_rate(core, parser.feed_mm_min)} S{parser.spindle_rpm:.0f}]"


def parameters(core: Core) -> list[str]:
    """What `$#` prints."""
    lines = [f"[{name}:{_axes(core, core.eeprom.offsets_mm[name])}]" for name in OFFSETS]
    lines.append(f"[G92:{_axes(core, core.parser.shift_mm)}]")
    lines.append(f"[TLO:{_length(core, core.parser.tool_mm)}]")
    lines.append(f"[PRB:{_axes(core, (0.0, 0.0, 0.0))}:0]")
    return lines


def build(core: Core) -> list[str]:
    """What `$I` prints."""
    return [f"[VER:1.1h.20190830:{core.eeprom.build_info}]", "[OPT:V,15,128]"]


def _state(core: Core) -> str:
    if core.state is State.HOLD:
        return f"Hold:{0 if core.held else 1}"
    if core.state is State.DOOR:
        return f"Door:{0 if core.held else 2}"
    return core.state.value


def _pins(core: Core) -> str:
    pressed = core.carriages.pressed(core.really_m())
    inverted = core.eeprom.on(5)
    return "".join(axis for axis, one in zip(AXES, pressed, strict=True) if one != inverted)


def _add_rare(core: Core, fields: list[str], offset_mm: tuple[float, float, float]) -> None:
    """Work offset and overrides, each after a number of reports that depends on whether the machine is busy."""
    due, busy = core.overrides, core.state in _BUSY
    if due.reports_to_wco > 0:
        due.reports_to_wco -= 1
    else:
        due.reports_to_wco = (_WCO_BUSY if busy else _WCO_IDLE) - 1
        due.reports_to_ov = due.reports_to_ov or 1
        fields.append("WCO:" + _axes(core, offset_mm))
    if due.reports_to_ov > 0:
        due.reports_to_ov -= 1
        return
    due.reports_to_ov = (_OV_BUSY if busy else _OV_IDLE) - 1
    fields.append(f"Ov:{due.feed},{due.rapid},{due.spindle}")
    modal = core.parser.modal
    accessories = {"M3": "S", "M4": "C"}.get(modal.spindle, "") + ("F" if modal.coolant == "M8" else "")
    if accessories:
        fields.append("A:" + accessories)


def _axes(core: Core, values_mm: tuple[float, float, float]) -> str:
    return ",".join(_length(core, value) for value in values_mm)


def _length(core: Core, value_mm: float) -> str:
    text = f"{value_mm / _MM_PER_INCH:.4f}" if core.eeprom.on(13) else f"{value_mm:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _rate(core: Core, value_mm_min: float) -> str:
    return f"{value_mm_min / _MM_PER_INCH:.1f}" if core.eeprom.on(13) else f"{value_mm_min:.0f}"
