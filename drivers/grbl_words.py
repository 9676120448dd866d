"""GRBL 1.1's error and alarm numbers in words, each with what to do about it.

Meanings are those of the firmware's own tables (GRBL 1.1h, doc/csv/error_codes_en_US.csv and alarm_codes_en_US.csv).
"""

from __future__ import annotations

from collections.abc import Mapping

_GARBLED = "check the cable and the baud rate (115200)"
_G_CODE = "this driver never sends that; check the cable, and that nobody else writes to the port"
_SETTING = "check the value with $$ and the controller's manual"
_RESET = "take the cause away, then home the stage"

ERRORS: Mapping[int, tuple[str, str]] = {
    1: ("a word does not begin with a letter", _GARBLED),
    2: ("a number is missing or malformed", _GARBLED),
    3: ("unknown $ command", "check that the controller runs GRBL 1.1"),
    4: ("a value must not be negative", _SETTING),
    5: ("homing is off", "fit limit switches and set $22=1"),
    6: ("the step pulse is shorter than 3 microseconds", "set $0=10"),
    7: ("the settings memory could not be read and was set to defaults", "set all of $$ again"),
    8: ("this $ command is legal only at rest", "wait until the stage stands, or stop it"),
    9: ("locked by an alarm or a jog", "home the stage"),
    10: ("soft limits need homing", "set $22=1 before $20=1"),
    11: ("the line is too long", _G_CODE),
    12: ("the speed needs more steps per second than the controller can make", "lower $110-$112 or $100-$102"),
    13: ("the safety door is open", "close the door"),
    14: ("a start-up line or build info is too long for the settings memory", _SETTING),
    15: (
        "the target is beyond the controller's travel",
        "check $130-$132, and machine_zero_m and travel_m of the stage in the bench file",
    ),
    16: ("the jog command lacks = or holds forbidden G-code", _G_CODE),
    17: ("laser mode needs a PWM output", "set $32=0"),
    20: ("unsupported G-code", _G_CODE),
    21: ("two commands of one modal group", _G_CODE),
    22: ("no feed rate was given", _G_CODE),
    23: ("a command needs a whole number", _G_CODE),
    24: ("two commands want the axis words", _G_CODE),
    25: ("a word is repeated", _G_CODE),
    26: ("axis words are missing", _G_CODE),
    27: ("the line number is out of range", _G_CODE),
    28: ("a value is missing", _G_CODE),
    29: ("unsupported work coordinate system", _G_CODE),
    30: ("G53 needs G0 or G1", _G_CODE),
    31: ("axis words that nothing uses", _G_CODE),
    32: ("an arc without axis words in its plane", _G_CODE),
    33: ("the motion's target is invalid", _G_CODE),
    34: ("the arc cannot be computed", _G_CODE),
    35: ("an arc without offsets", _G_CODE),
    36: ("words that nothing uses", _G_CODE),
    37: ("tool length offset on an axis that has none", _G_CODE),
    38: ("the tool number is too large", _G_CODE),
}

ALARMS: Mapping[int, tuple[str, str]] = {
    1: (
        "a limit switch was hit; the position is lost",
        "free the carriage from the switch by hand, then home the stage",
    ),
    2: ("a soft limit was reached; the stage stands where it was", _RESET),
    3: ("reset while moving; steps may be lost", "home the stage"),
    4: ("the probe was touched before the probing began", _RESET),
    5: ("the probe was not touched", _RESET),
    6: ("homing was interrupted by a reset", "home the stage again"),
    7: ("the safety door was opened while homing", "close the door and home the stage again"),
    8: ("homing could not leave the limit switch", "check the switch's wiring, or raise the pull-off $27"),
    9: ("homing did not find the limit switch", "check the switches, the direction mask $23 and the travel $130-$132"),
}


def error_words(code: int) -> tuple[str, str]:
    """What `error:code` means, and what to do."""
    return ERRORS.get(code, ("an error that GRBL 1.1 does not define", "check that the controller runs GRBL 1.1"))


def alarm_words(code: int) -> tuple[str, str]:
    """What `ALARM:code` means, and what to do."""
    return ALARMS.get(code, ("an alarm that GRBL 1.1 does not define", "check that the controller runs GRBL 1.1"))
