"""The calibrations by name, in the order in which each can trust what came before it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from calibration.routine import Routine
from testbed.core.errors import ConfigError
from testbed.engine.plain_words import closest

ROUTINES: dict[str, str] = {
    # the band first: an interferer spoils all others
    "noise": "calibration.noise:Noise",
    # levels, then what is wrong with the samples themselves
    "gain": "calibration.gain:Gain",
    "iq": "calibration.iq:Iq",
    # frequency before time before phase: each is read through the one before
    "carrier": "calibration.carrier:Carrier",
    "timing": "calibration.timing:Timing",
    "phase": "calibration.phase:Phase",
    # stages are measured by a steady phase, and the field by stages
    "axes": "calibration.axes:Axes",
    "field": "calibration.field:Field",
    # last, since it loads a model
    "cost": "calibration.cost:Cost",
    "loss-model": "calibration.loss_model:LossModel",
}
ALL = "all"
_BY_ITSELF = {"loss-model"}
"""Speaks of one model and its data, not of the bench, and takes long: only where it is asked for."""


def names_of(name: str) -> tuple[str, ...]:
    """The calibrations that a word on the command line means, in their order."""
    return tuple(one for one in ROUTINES if one not in _BY_ITSELF) if name == ALL else (name,)


def routine_named(name: str) -> Routine:
    """A calibration.

    Args:
        name: of the table, or `module:Class` for one of your own.

    Returns:
        an instance.

    Raises:
        ConfigError: there is none.
    """
    target = ROUTINES.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no calibration {name!r}", remedy=f"{closest(name, ROUTINES)}; {ALL}; or module:Class of your own"
        )
    try:
        found: Routine = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the calibration {target} cannot be loaded: {error}",
            remedy="give module:Class of a class like those in calibration/, importable from here",
        ) from error
    missing = [word for word in _CONTRACT if getattr(found, word, None) is None]
    if missing:
        raise ConfigError(
            f"{target} is no calibration: it has no {', '.join(missing)}",
            remedy="implement calibration.routine.Routine",
        )
    return found


_CONTRACT: Sequence[str] = (
    "name",
    "about",
    "Options",
    "validity",
    "lasts_s",
    "next_step",
    "num_steps",
    "measure",
    "fit",
)
