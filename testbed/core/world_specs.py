"""The simulated world: keys of the bench file that `sim` and `emulated` read and a real bench ignores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from testbed.core.specs import Spec

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class ImpairmentsSpec(Spec):
    """What the simulated radios do to their signals. Everything is off by default; each key switches one effect on."""

    oscillator_ppm: float = Field(
        0.0, ge=0, description="standard deviation of the oscillators' offsets from the receiver's, parts per million"
    )
    drift_ppm_s: float = Field(0.0, ge=0, description="standard deviation of their steady drift, ppm in a second")
    sampling_offset: bool = Field(True, description="the oscillator's offset also stretches the sampling clock")
    phase_noise_deg: float = Field(0.0, ge=0, description="rms of each synthesiser's phase noise")
    phase_noise_hz: Positive = Field(1e4, description="corner frequency of the phase noise")
    phase_jumps: Literal["never", "tune", "burst"] = Field(
        "never", description="when a transmit synthesiser takes a new random phase: at every write of its frequency"
    )
    start_offset_s: float = Field(0.0, ge=0, description="standard deviation of each transmitter's fixed delay")
    tx_iq_gain_db: float = Field(0.0, description="gain of the transmitters' Q branch over I")
    tx_iq_phase_deg: float = Field(0.0, description="angle missing between the transmitters' I and Q branches")
    tx_dc_db: float | None = Field(None, description="transmitters' carrier leak, relative to their highest power")
    dac_bits: int | None = Field(None, ge=2, le=16, description="transmit converter; None does not quantise")
    dac_headroom_db: float = Field(
        13.0, description="full scale of the transmit converter above the node's highest average power"
    )
    pa_saturation_dbm: float | None = Field(None, description="output power that the amplifier cannot exceed (Rapp)")
    pa_smoothness: Positive = Field(3.0, description="Rapp's exponent p")
    fir_loss_db: float = Field(0.0, ge=0, description="transmit power lost to the interpolation filter's gain step")
    tx_gain_error_db: float = Field(
        0.0, ge=0, description="standard deviation of what each transmitter's gain is off, smooth over its settings"
    )
    rx_gain_error_db: float = Field(
        0.0, ge=0, description="standard deviation of what each antenna's gain is off, smooth over its settings"
    )
    rx_iq_gain_db: float = Field(0.0, description="gain of the receiver's Q branch over I")
    rx_iq_phase_deg: float = Field(0.0, description="angle missing between the receiver's I and Q branches")
    rx_dc_dbm: float | None = Field(None, description="receiver's DC offset, as power at the antenna port")
    adc_bits: int | None = Field(None, ge=2, le=16, description="receive converter; None neither quantises nor clips")
    adc_full_scale_dbm: float = Field(0.0, description="power that fills the receive converter at 0 dB of gain")
    agc: Literal["manual", "block"] = Field(
        "manual", description="manual: rx_gain_db holds; block: each capture is scaled to 12 dB below full scale"
    )
    rx_gain_db: float = Field(0.0, description="receive gain in front of the converter")
    phase_flip_gain_db: float | None = Field(
        None, description="receive gains from here on turn the phase by 180 degrees, as switched amplifiers do"
    )
    stale_samples: int = Field(0, ge=0, description="samples from before a capture that buffers still deliver first")
    dropped_buffers: float = Field(0.0, ge=0, lt=1, description="probability that a receive buffer is lost")
    buffer_samples: int = Field(16384, ge=64, description="length of a receive buffer")


class StageTruthSpec(Spec):
    """How the simulated stages' antennas depart from what the controllers count. Everything is off by default.

    Antenna = origin + R(rotation) (scale * (carriage + homing error) + vibration), in the array frame; the carriage
    follows the motor with the screws' play between them.
    """

    backlash_m: tuple[NotNegative, NotNegative] = Field(
        (0.0, 0.0), description="play of the two axes' screws; carriages that were pushed from above stay so far above"
    )
    scale: Positive = Field(1.0, description="true metres in a metre that the controllers count, from the frame's zero")
    homing_std_m: float = Field(
        0.0, ge=0, description="standard deviation of each axis' place after a homing; emulated only"
    )
    ring_m: float = Field(
        0.0, ge=0, description="amplitude of the vibration along the way at the arrival; emulated only"
    )
    ring_s: Positive = Field(0.05, description="time in which the vibration falls to 1/e")
    ring_hz: Positive = Field(40.0, description="frequency of the vibration")
    rotation_deg: float = Field(0.0, description="of the stages in the array frame, beyond what their tables say")


class WorldSpec(Spec):
    """The simulated room; other backends ignore it."""

    model: Literal["room", "isotropic", "recorded", "tdl", "cdl"] = Field(
        "room",
        description="room: waves by way of points in the room; isotropic: from anywhere in the half-space before the "
        "array; recorded: from `recording`; tdl, cdl: 3GPP TR 38.901 (the extra sionna)",
    )
    num_paths: int = Field(6, ge=1, description="plane waves from each node; with tdl of each tap; cdl brings its own")
    line_of_sight: bool = Field(True, description="the first path is steady; false: all paths are alike (Rayleigh)")
    rician_k_db: float = Field(
        3.0, description="power of the line of sight over all other paths, in room and isotropic"
    )
    fading: Literal["static", "block", "jakes"] = Field(
        "static",
        description="static: gains turn with doppler_hz only; block: drawn anew every coherence_s; jakes: each path "
        "is a Rayleigh process of doppler_hz",
    )
    coherence_s: Positive = Field(1.0, description="of block fading")
    shadowing_db: float = Field(0.0, ge=0, description="standard deviation of each node's log-normal shadowing")
    selective: bool = Field(False, description="paths arrive with their own delays, so the channel varies in frequency")
    delay_spread_s: Positive = Field(50e-9, description="rms; of every model but room, whose geometry sets the delays")
    coupling: bool = Field(False, description="mutual coupling of the array's antennas, as side-by-side dipoles")
    recording: str | None = Field(
        None, description="npz file of measured channels, beside the bench file or absolute, for model recorded"
    )
    profile: Literal["A", "B", "C", "D", "E"] = Field("A", description="3GPP profile, for models tdl and cdl")
    path_loss_exponent: float = Field(2.2, ge=0)
    reference_loss_db: float | None = Field(None, description="loss at 1 m; free space at the carrier by default")
    excess_loss_db: float = Field(0.0, description="walls, cables, polarisation")
    doppler_hz: float = Field(
        0.0, ge=0, description="largest Doppler shift of a path; 0 is a static room; not of block fading"
    )
    noise_figure_db: float = Field(7.0, ge=0)
    temperature_k: float = Field(290.0, ge=0, description="0 gives a noiseless receiver")
    jammer_dbm: float | None = Field(None, description="power of a steady carrier that every antenna receives")
    jammer_hz: Positive | None = Field(None, description="its frequency; the bench's carrier by default")
    impairments: ImpairmentsSpec = ImpairmentsSpec()
    stages: StageTruthSpec = StageTruthSpec()

    @model_validator(mode="after")
    def _complete(self) -> WorldSpec:
        if (self.model == "recorded") != (self.recording is not None):
            raise ValueError('recording: model = "recorded" and a recording go together; give both or neither')
        if self.fading == "jakes" and self.doppler_hz == 0:
            raise ValueError('doppler_hz: fading = "jakes" needs a positive Doppler shift')
        return self
