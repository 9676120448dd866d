"""The fractional-N synthesisers of an AD936x: which frequencies it can really make, and which it says it makes.

Facts: Analog Devices UG-570 (AD9361 reference manual), chapters on the RF and the baseband synthesisers; the rounding
of the texts is that of the Linux driver ad9361, which reckons in whole hertz.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from sim_backend.emulators.attribute_tree import refusal

_RF_MODULUS = 8_388_593
_BASEBAND_MODULUS = 2_088_960
_RF_VCO_LOWEST_HZ = 6_000_000_000
_BASEBAND_VCO_LOWEST_HZ = 715_000_000
_BASEBAND_VCO_HIGHEST_HZ = 1_430_000_000
_ADC_LOWEST_HZ, _ADC_HIGHEST_HZ = 25_000_000, 640_000_000
_DAC_HIGHEST_HZ = 336_000_000
HIGHEST_RATE_HZ = 61_440_000
"""Highest sample rate of one channel."""
_HALF_BANDS = {12: (3, 2, 2), 8: (2, 2, 2), 6: (3, 1, 2), 4: (2, 2, 1), 3: (3, 1, 1), 2: (2, 1, 1), 1: (1, 1, 1)}


@dataclass(frozen=True)
class CarrierWords:
    """What the registers of a carrier's synthesiser hold.

    The oscillator runs between 6 and 12 GHz from twice the crystal's frequency; a power of two divides it. Its steps at
    the carrier are therefore 80 MHz / 8388593 / divisor: 2.4 Hz between 1.5 and 3 GHz, 4.8 Hz above.

    Attributes:
        whole: whole part of the ratio of oscillator and reference.
        fraction: its rest in 8388593rds.
        halvings: the divisor is two to this power.
    """

    whole: int
    fraction: int
    halvings: int

    @classmethod
    def for_frequency(cls, frequency_hz: int, crystal_hz: int) -> CarrierWords:
        """The nearest words.

        Args:
            frequency_hz: of the carrier; the driver drops an odd hertz.
            crystal_hz: what the driver takes the crystal for.
        """
        reference_hz = 2 * crystal_hz
        oscillator_hz, halvings = 2 * (frequency_hz // 2) * 2, 1
        while oscillator_hz < _RF_VCO_LOWEST_HZ:
            oscillator_hz, halvings = 2 * oscillator_hz, halvings + 1
        whole, rest_hz = divmod(oscillator_hz, reference_hz)
        fraction = (rest_hz * _RF_MODULUS + reference_hz // 2) // reference_hz
        return cls(whole, fraction, halvings)

    def shown_hz(self, crystal_hz: int) -> int:
        """What the driver says, in even hertz."""
        reference_hz = 2 * crystal_hz
        oscillator_hz = reference_hz * self.fraction // _RF_MODULUS + reference_hz * self.whole
        return 2 * ((oscillator_hz >> self.halvings) // 2)

    def true_hz(self, crystal_hz: float) -> float:
        """What the antenna sees, with a crystal of that frequency."""
        return 2 * crystal_hz * (self.whole + self.fraction / _RF_MODULUS) / 2**self.halvings


@dataclass(frozen=True)
class ClockChain:
    """The baseband PLL and the dividers down to both sample rates.

    Attributes:
        whole: whole part of the ratio of PLL and crystal.
        fraction: its rest in 2088960ths.
        halvings: the converters' clock is the PLL's divided by two to this power.
        receive: dividers of the three half-band filters and the FIR filter.
        transmit: likewise.
        dac_divisor: of the transmit converter's clock from the receive converter's, 1 or 2.
    """

    whole: int
    fraction: int
    halvings: int
    receive: tuple[int, int, int, int]
    transmit: tuple[int, int, int, int]
    dac_divisor: int

    @classmethod
    def for_rate(
        cls, rate_hz: int, crystal_hz: int, *, decimation: int = 1, interpolation: int = 1, slowest: bool = True
    ) -> ClockChain:
        """Find the dividers as the driver does: the first that keep both converters within their limits.

        Args:
            rate_hz: of the samples, both directions.
            crystal_hz: what the driver takes the crystal for.
            decimation: of the receive FIR filter, 1 where it is off.
            interpolation: of the transmit FIR filter.
            slowest: the governor's "nominal"; False oversamples as much as possible.

        Raises:
            OSError: EINVAL, no dividers make that rate.
        """
        if not 0 < rate_hz <= HIGHEST_RATE_HZ:
            raise refusal(errno.EINVAL)
        totals = list(_HALF_BANDS)
        if slowest and 8 * decimation * rate_hz >= _ADC_LOWEST_HZ:
            totals.remove(12)
        for total in totals:
            adc_hz = total * decimation * rate_hz
            # The lowest rate on offer is rounded down to a whole hertz.
            if not _ADC_LOWEST_HZ - total * decimation < adc_hz <= _ADC_HIGHEST_HZ:
                continue
            for dac_divisor in (1, 2):
                transmit_total, rest = divmod(total * decimation, dac_divisor * interpolation)
                if adc_hz <= dac_divisor * _DAC_HIGHEST_HZ and not rest and transmit_total in _HALF_BANDS:
                    return cls._tuned(
                        adc_hz,
                        crystal_hz,
                        (*_HALF_BANDS[total], decimation),
                        (*_HALF_BANDS[transmit_total], interpolation),
                        dac_divisor,
                    )
        raise refusal(errno.EINVAL)

    @classmethod
    def _tuned(
        cls,
        adc_hz: int,
        crystal_hz: int,
        receive: tuple[int, int, int, int],
        transmit: tuple[int, int, int, int],
        dac_divisor: int,
    ) -> ClockChain:
        halvings = 1
        while adc_hz << halvings < _BASEBAND_VCO_LOWEST_HZ:
            halvings += 1
        if adc_hz << halvings > _BASEBAND_VCO_HIGHEST_HZ:
            raise refusal(errno.EINVAL)
        whole, rest_hz = divmod(adc_hz << halvings, crystal_hz)
        fraction = (rest_hz * _BASEBAND_MODULUS + crystal_hz // 2) // crystal_hz
        return cls(whole, fraction, halvings, receive, transmit, dac_divisor)

    def shown_hz(self, crystal_hz: int, *, transmit: bool) -> tuple[int, int, int, int, int, int]:
        """What the driver says of one direction: PLL, converter, after each half-band filter, samples."""
        pll_hz = crystal_hz * self.fraction // _BASEBAND_MODULUS + crystal_hz * self.whole
        converter_hz = (pll_hz >> self.halvings) // (self.dac_divisor if transmit else 1)
        third, second, first, filtered = self.transmit if transmit else self.receive
        after_third_hz = converter_hz // third
        after_second_hz = after_third_hz // second
        after_first_hz = after_second_hz // first
        return pll_hz, converter_hz, after_third_hz, after_second_hz, after_first_hz, after_first_hz // filtered

    def true_hz(self, crystal_hz: float) -> float:
        """The rate of the samples with a crystal of that frequency."""
        third, second, first, filtered = self.receive
        pll_hz = crystal_hz * (self.whole + self.fraction / _BASEBAND_MODULUS)
        return pll_hz / 2**self.halvings / (third * second * first * filtered)


def lowest_rate_hz(decimation: int) -> int:
    """The lowest rate that the driver offers with that FIR decimation."""
    return _ADC_LOWEST_HZ // (12 * decimation)
