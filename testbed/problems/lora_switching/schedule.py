"""Schedules of LoRA switching over known slots: powers and shares of given modules, and better modules.

With the modules held, powers and shares are found by turns, for many choices of modules at once:

    powers   of device k by (A10) in every slot, at the price mu_k per joule at which it uses its energy up
    shares   of every slot by Newton's method on the sum of -A exp(-psi(b) / p) + mu tau p

Modules that never pay still take their computing energy; a choice without them is another choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from testbed.phy.outage import required_power_w
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel, describe, slot_terms
from testbed.problems.lora_switching.steps import Terms, best_power_w, share_band

_CHOICES = 800
"""Choices of modules up to which all are tried."""

_NEIGHBOURS = 400
"""Changes of a choice that are tried at once."""


def improved(
    model: SwitchingModel, slots: Sequence[Slot], total_j: np.ndarray, module: np.ndarray
) -> list[SlotDecision]:
    """The best schedule found from a choice of modules on.

    All choices are tried where they are few; else single changes and shifts of a device's use to another slot, as long
    as one helps.

    Args:
        model: what stays.
        slots: all of them.
        total_j: energy of each device in all slots together, shape [num_devices].
        module: m_k of every slot, 0 for idle, shape [num_slots, num_devices].

    Returns:
        a decision for each slot.
    """
    search = _Search(model, slots, total_j)
    if float(model.num_modules + 1) ** module.size <= _CHOICES:
        tried = np.indices((model.num_modules + 1,) * module.size).reshape(module.size, -1).T
        tried = search.affordable(tried.reshape(-1, *module.shape))
        values = search.finished(tried, 3)[0]
        return search.decisions(tried[np.argsort(values, kind="stable")[:5]])
    now, value = module, float(search.finished(module[None], 3)[0][0])
    for _ in range(20):
        tried = search.affordable(_neighbours(now, model.possible))
        if not len(tried):
            break
        values = search.finished(tried, 3)[0]
        row = int(np.argmin(values))
        if values[row] >= value - 1e-9 * abs(value):
            break
        now, value = tried[row], float(values[row])
    return search.decisions(now[None])


def _neighbours(module: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Choices that differ in one place, or in which a device changes places between two slots; at most `_NEIGHBOURS`,
    evenly chosen; shape [num, num_slots, num_devices]."""
    found = []
    num_slots, num_devices = module.shape
    for slot in range(num_slots):
        for device in range(num_devices):
            others = [0, *(1 + np.flatnonzero(possible[device])).tolist()]
            for other in others:
                if other != module[slot, device]:
                    one = module.copy()
                    one[slot, device] = other
                    found.append(one)
            for later in range(slot + 1, num_slots):
                if module[later, device] != module[slot, device]:
                    one = module.copy()
                    one[[slot, later], device] = one[[later, slot], device]
                    found.append(one)
    step = max(1, -(-len(found) // _NEIGHBOURS))
    return np.array(found[::step], np.int64).reshape(-1, num_slots, num_devices)


class _Search:
    """Evaluates many choices of modules at once, each of shape [num_slots, num_devices]."""

    def __init__(self, model: SwitchingModel, slots: Sequence[Slot], total_j: np.ndarray) -> None:
        self.model, self.slots, self.total_j = model, slots, total_j
        unit = [slot_terms(model, slot, np.ones(model.num_devices), 1.0) for slot in slots]
        # [num_slots, num_devices, num_modules]
        self.terms = Terms(*(np.array([getattr(one, part.name) for one in unit]) for part in fields(Terms)))
        self.constant = float(sum(slot.importance.sum() for slot in slots))

    def affordable(self, tried: np.ndarray) -> np.ndarray:
        """The choices whose computing alone keeps to the energies, and whose modules are possible."""
        devices = np.arange(self.model.num_devices)
        index = np.maximum(tried - 1, 0)
        fits = np.all((tried == 0) | self.model.possible[devices, index], axis=(1, 2))
        compute_j = np.where(tried > 0, self.model.compute_j[devices, index], 0.0).sum(axis=1)
        return tried[fits & np.all(compute_j <= self.total_j, axis=1)]

    def finished(self, tried: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of penalties [num]; powers and shares [num, num_slots, num_devices], 0 where idle."""
        total_hz, active = self.model.total_hz, tried > 0
        terms = self._of(tried)
        left_j = self.total_j * (1 - 1e-9) - np.sum(np.where(active, terms.fixed_cost, 0.0), axis=1)
        share_hz = np.where(active, total_hz / np.maximum(active.sum(axis=2, keepdims=True), 1), total_hz)
        power_w, price = self._powers(terms, active, share_hz, left_j)
        for _ in range(turns):
            priced = replace(terms, price_per_w=terms.price_per_w * price[:, None], fixed_cost=-2.0 * terms.worth)
            flat = Terms(*(getattr(priced, one.name).reshape(-1, tried.shape[2]) for one in fields(Terms)))
            sending = active & (power_w > 0)
            shared, _ = share_band(
                flat, sending.reshape(flat.worth.shape), share_hz.reshape(flat.worth.shape), total_hz
            )
            shared = shared.reshape(tried.shape)
            share_hz = np.where(shared > 0, shared, total_hz)
            power_w, price = self._powers(terms, sending & (shared > 0), share_hz, left_j)
        sent = power_w > 0
        required_w = required_power_w(share_hz, terms.load_hz, terms.noise_over_gain_w_hz)
        kept = np.where(
            sent, terms.worth * np.exp(-np.where(sent, required_w / np.where(sent, power_w, 1.0), 0.0)), 0.0
        )
        return self.constant - kept.sum(axis=(1, 2)), power_w, np.where(sent, share_hz, 0.0)

    def decisions(self, tried: np.ndarray) -> list[SlotDecision]:
        """The best of a few choices, finished to the end; devices that send in vain rest."""
        values, power_w, share_hz = self.finished(tried, 15)
        row = int(np.argmin(values))
        return [
            describe(self.model, slot, np.where(power > 0, module, 0), power, share)
            for slot, module, power, share in zip(self.slots, tried[row], power_w[row], share_hz[row], strict=True)
        ]

    def _of(self, tried: np.ndarray) -> Terms:
        """Entries of the chosen modules, shape of `tried`."""
        slot, device = np.indices(tried.shape[1:])
        return Terms(*(getattr(self.terms, one.name)[slot, device, np.maximum(tried - 1, 0)] for one in fields(Terms)))

    def _powers(
        self, terms: Terms, active: np.ndarray, share_hz: np.ndarray, left_j: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Powers by (A10) and the prices [num, num_devices] at which the energies suffice, as small as can be."""
        required_w = required_power_w(share_hz, terms.load_hz, terms.noise_over_gain_w_hz)
        window_s = terms.price_per_w
        low, high = np.full(left_j.shape, -30.0), np.full(left_j.shape, 30.0)
        power_w = np.zeros(active.shape)
        for _ in range(45):
            middle = 0.5 * (low + high)
            asked = best_power_w(replace(terms, price_per_w=window_s * np.exp(middle)[:, None]), required_w)
            asked = np.where(active, asked, 0.0)
            fits = np.sum(asked * window_s, axis=1) <= left_j
            power_w = np.where(fits[:, None], asked, power_w)
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return power_w, np.exp(high)
