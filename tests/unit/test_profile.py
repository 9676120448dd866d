"""Profiles: what JSON makes of them, what they are valid for, and how people read them."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from calibration.fingerprint import array_sha256, bench_sha256, validity_of
from calibration.profile import FORMAT, Profile, StoredQuantity, expiry, numbers, stored_curves, stored_values
from calibration.report import render_report
from calibration.routine import Curve, Fit, Quantity
from calibration.shown import difference_lines, profile_lines, shown, sigmas, span
from calibration.svg_plot import svg, ticks
from testbed.core.errors import ProtocolError
from tests.benches import small_bench

MADE = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def profile(**changes: Any) -> Profile:
    """A small profile."""
    content: dict[str, Any] = {
        "id": "20260301-120000-abcd",
        "routine": "tiny",
        "options": {"repeats": 2},
        "bench": "small",
        "bench_sha256": "0" * 64,
        "backend": "sim",
        "seed": 1,
        "serials": {"receiver": "r-1", "node-00": "n-0"},
        "made": MADE,
        "expires": MADE + timedelta(hours=2),
        "values": {"node-00.offset": StoredQuantity(value=1.25e-6, unit="1", std=4e-9)},
        "passed": True,
        "why": "limited by noise",
    }
    return Profile.model_validate({**content, **changes})


def test_a_profile_survives_json_bit_for_bit() -> None:
    values = {
        "a": Quantity(np.array([[0.1, math.inf], [math.nan, -math.inf]]), "Hz", ((1e-300, 1), (2, 3))),
        "b": Quantity(np.float32(0.1), "1", math.inf),
        "c": Quantity(np.int64(3), "1", 0),
    }
    curve = Curve("t", "x", "y", np.arange(3), np.array([0.1, math.nan, 3.0]), np.array([1.0, 2.0, 3.0]))
    fit = Fit(values, True, "", (curve,))
    before = profile(values=stored_values(fit), curves=stored_curves(fit.curves), expires=None)
    text = before.model_dump_json()
    assert json.loads(text, parse_constant=pytest.fail)["values"]["a"]["value"] == [[0.1, "inf"], ["nan", "-inf"]]
    after = Profile.model_validate_json(text)
    assert after.model_dump_json() == text
    assert after.values["b"].value == float(np.float32(0.1))
    assert after.values["a"].std == ((1e-300, 1), (2, 3))
    assert after.curves[0].x == (0, 1, 2)
    assert math.isnan(after.curves[0].measured[1])
    assert after.quantities["c"] == Quantity(3, "1", 0)


@pytest.mark.parametrize("bad", [1j, "0.1", None, {"a": 1}, [1, [2, 1j]], np.array([1j])])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="no number"):
        numbers(bad)
    with pytest.raises(ValidationError):
        stored_values(Fit({"a": Quantity(bad, "1", 0.0)}, True, ""))


@pytest.mark.parametrize(
    "change",
    [{"colour": "red"}, {"format": FORMAT + 1}, {"made": datetime(2026, 3, 1)}, {"values": {"a": {"value": 1}}}],
)
def test_unknown_keys_other_formats_and_naive_times_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        profile(**change)


def test_a_profile_expires_on_its_second() -> None:
    assert not profile().expired(MADE + timedelta(hours=2) - timedelta(microseconds=1))
    assert profile().expired(MADE + timedelta(hours=2))
    assert expiry(MADE, math.inf) is None
    assert not profile(expires=None).expired(MADE + timedelta(days=10**5))
    assert expiry(MADE, 90.0) == MADE + timedelta(seconds=90)


def changed(**tables: dict[str, Any]) -> Any:
    """The small bench with keys of its tables changed."""
    content = small_bench().model_dump(mode="json")
    for table, keys in tables.items():
        content[table] = {**content[table], **keys} if isinstance(content[table], dict) else keys
    return type(small_bench()).model_validate(content)


def test_the_fingerprint_follows_radios_and_world_and_nothing_else() -> None:
    bench = small_bench()
    same = [
        small_bench(carrier_hz=2.41e9),
        small_bench(sample_rate_hz=4e6),
        small_bench(name="other"),
        changed(link={"downlink_bit_s": 1e3}),
        changed(radio={"start_jitter_s": 1e-6, "phase_coherent": True}),
        small_bench(nodes=[{"count": 3, "radio": {"uri": "ip:10.0.0.{}", "gain_db": 20}}]),
    ]
    assert {bench_sha256(one, "sim") for one in same} == {bench_sha256(bench, "sim")}
    other = [
        changed(world={"num_paths": 2}),
        small_bench(nodes=[{"count": 2}]),
        small_bench(nodes=[{"count": 3, "radio": {"xo_correction": 40_000_100}}]),
        small_bench(nodes=[{"count": 3, "cpu_hz": 1e9}]),
    ]
    assert len({bench_sha256(one, "sim") for one in [bench, *other]}) == 5
    assert bench_sha256(changed(world={"num_paths": 2}), "lab") == bench_sha256(bench, "lab")
    assert bench_sha256(other[2], "lab") != bench_sha256(bench, "lab")


def test_validity_names_what_matters_to_a_routine() -> None:
    bench = small_bench(carrier_hz=2.41e9)
    found = validity_of(("frequency_hz", "gain"), bench)
    assert (found.frequency_hz, found.sample_rate_hz, found.array) == (2.41e9, None, None)
    assert found.gain == pytest.approx((1e5,))
    moved = small_bench(nodes=[{"name": "a", "position_m": [1, 1, 1]}])
    assert array_sha256(moved) != array_sha256(small_bench(nodes=[{"name": "a"}]))
    assert validity_of(("array",), bench).array == array_sha256(bench)
    with pytest.raises(ProtocolError, match="temperature"):
        validity_of(("temperature",), bench)


@pytest.mark.parametrize(
    ("name", "value", "unit", "std", "words"),
    [
        ("n.offset", 1.25e-6, "1", 4e-9, ("1.2500", "0.0040", "ppm")),
        ("n.drift", -2e-9, "1/s", 1e-10, ("-2.00", "0.10", "ppb/s")),
        ("n.clock_offset", 3e-6, "1", 1e-7, ("3.00", "0.10", "ppm")),
        ("n.seconds_per_task", 0.0, "s", 3.5e-7, ("0", "350", "ns")),
        ("n.error", 1e-3, "1", 1e-4, ("-30.00", "0.43", "dB")),
        ("stage-0.power", 6.0, "W", 0.5, ("6.00", "0.50", "W")),
        ("stage-0.frame", (0.0, 0.1), "m, rad", (0.01, 0.01), ("[0.000, 0.100]", "[0.010, 0.010]", "m, rad")),
        ("n.delay", 3.21e-7, "s", 2e-9, ("321.0", "2.0", "ns")),
        ("n.jitter", 0.0, "s", math.inf, ("0", "inf", "s")),
        ("antenna-0.noise_w", 1e-13, "W", 1e-14, ("-100.00", "0.43", "dBm")),
        ("antenna-0.gain_error", 2.0, "1", 0.02, ("3.010", "0.043", "dB")),
        ("antenna-0.image", (0.003, 0.004), "1", (1e-5, 1e-5), ("-46.021", "0.017", "dB")),
        ("antenna-0.dc", (1e-5, 0.0), "sqrt(W)", (1e-7, 1e-7), ("-70.000", "0.087", "dBm")),
        ("n.phase", math.pi / 2, "rad", math.pi / 180, ("90.0", "1.0", "deg")),
        ("stage-0.backlash", (2e-5, 1.5e-5), "m", (1e-6, 1e-6), ("[20.0, 15.0]", "[1.0, 1.0]", "um")),
        ("stage-0.scale", 1.00005, "1", 1e-6, ("50.0", "1.0", "ppm above 1")),
        ("n.cycles_per_token", 2e6, "1", 1e3, ("2000000", "1000", "")),
        ("phase_coherent", 1, "1", 0, ("1", "0", "")),
        ("n.paths", ((0.0, 1.0),) * 9, "1", ((0.1, 0.2),) * 9, ("18 values, 0 to 1", "<= 0.2", "")),
        ("quiet_hz", (), "Hz", (), ("none", "-", "Hz")),
        ("n.offset", math.nan, "1", math.nan, ("nan", "-", "ppm")),
    ],
)  # fmt: skip
def test_people_read_their_own_units(name: str, value: Any, unit: str, std: Any, words: tuple[str, str, str]) -> None:
    text = shown(name, StoredQuantity(value=value, unit=unit, std=std))
    assert (text.value, text.std, text.unit) == words


def test_a_failed_profile_says_so_first() -> None:
    lines = profile_lines(profile(passed=False, why="no signal from node-00"), MADE + timedelta(hours=3))
    assert lines[1].split(maxsplit=1) == ["verdict", "FAILED: no signal from node-00"]
    assert any("1 h ago" in line or "60 min ago" in line for line in lines if line.startswith("expires"))
    assert [span(timedelta(seconds=one)) for one in (3, 240, 7200, 200_000)] == ["3 s", "4 min", "2 h", "2 d"]


def test_differences_are_counted_in_deviations() -> None:
    one = profile()
    other = profile(
        id="b", seed=2,
        values={
            "node-00.offset": StoredQuantity(value=1.28e-6, unit="1", std=3e-9),
            "node-01.offset": StoredQuantity(value=0.0, unit="1", std=1e-9),
        },
    )  # fmt: skip
    assert sigmas(one.values["node-00.offset"], other.values["node-00.offset"]) == pytest.approx(6.0)
    lines = difference_lines(one, other)
    assert lines[0] == "seed: 1  ->  2"
    assert lines[-2].split() == ["node-00.offset", "1.2500", "1.2800", "ppm", "6.0"]
    assert lines[-1].split() == ["node-01.offset", "-", "0.0", "ppb", "-"]


def test_values_that_cannot_be_compared_have_no_distance() -> None:
    def quantity(value: Any, std: Any, unit: str = "s") -> StoredQuantity:
        return StoredQuantity(value=value, unit=unit, std=std)

    assert sigmas(quantity(1, 0.1), quantity(1, 0.1, "m")) is None
    assert sigmas(quantity((1, 2), (1, 1)), quantity((1,), (1,))) is None
    assert sigmas(quantity(math.nan, 1), quantity(1, 1)) is None
    assert sigmas(quantity(1, 0), quantity(1, 0)) == 0
    assert sigmas(quantity(1, 0), quantity(2, 0)) == math.inf
    assert sigmas(quantity(1, math.inf), quantity(2, 0)) == 0


def test_the_report_is_one_page_that_needs_nothing_else() -> None:
    x = np.linspace(0, 1, 50)
    curves = (
        Curve("Offset <node-00>", "time, s", "offset, ppm", x, x**2, x**2 - 0.01),
        Curve("no fit", "x", "y", x, np.full(50, 2.0)),
        Curve("crooked", "x", "y", x, x[:3]),
    )
    page = render_report(profile(curves=stored_curves(curves), why="a < b"))
    assert "a &lt; b" in page
    assert "Offset &lt;node-00&gt;" in page
    assert "<script" not in page
    assert "src=" not in page
    assert page.count("<svg") == 2
    assert "do not fit together" in page
    assert page.count("residual") == 1


def test_a_figure_leaves_out_what_is_not_finite_and_thins_what_is_long() -> None:
    x = np.arange(10_000.0)
    figure = svg("t", "x", "y", x, np.where(x == 0, np.inf, 1.0), np.full(10_000, np.nan))
    assert 1000 < figure.count("<circle") <= 2001
    assert "inf" not in figure
    assert "nan" not in figure
    assert "<svg" in svg("empty", "x", "y", np.zeros(0), np.zeros(0))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3.1e-9, 2.9e-9, 4) == pytest.approx([-2e-9, 0.0, 2e-9], abs=1e-20)
    assert ticks(1.0, 1.0) == [1.0]
