"""Asks radios and stages who they are and whether they can do what the bench file wants; changes nothing on them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from drivers.ad9361_settings import Ad9361
from drivers.ad9361_trigger import DEVICE as TRIGGER
from drivers.findings import Finding, from_error
from drivers.grbl_line import BAUD, GrblLine, PositionLost, Report
from drivers.grbl_machine import machine_of, parse_settings
from drivers.iiod_client import IiodClient
from drivers.pluto_scale import settings_for
from drivers.transport import Transport, TransportTimeout, Wire
from testbed.core.bench import BenchSpec, StageSpec
from testbed.core.errors import BenchError, StageFault
from testbed.core.frames import end_stops_m
from testbed.core.hardware import PlutoSpec

_CONNECT_S = 1.5
_ANSWER_S = 1.0
_WAKE_S = 2.2
_ZABER_S = 0.7
_SOME_GAIN_DB = -10.0


def radio_findings(bench: BenchSpec, name: str, spec: PlutoSpec) -> list[Finding]:
    """One radio: does it answer, is it the one that is meant, has it the trigger, can it do carrier and rate.

    Args:
        bench: the bench.
        name: of the radio.
        spec: how it is reached.

    Raises:
        BenchError: it does not answer, or is no such radio.
    """
    assert spec.uri is not None
    client = IiodClient(spec.uri, timeout_s=_ANSWER_S, connect_timeout_s=_CONNECT_S)
    try:
        chip = Ad9361(client)
        findings = _identity_findings(f"{name} at {spec.uri}", spec, client.context.attributes, chip.num_rx)
        findings += trigger_findings(bench, f"{name} at {spec.uri}", client.context.find(TRIGGER) is not None)
        try:
            chip.check(settings_for(spec, bench.carrier_hz, bench.sample_rate_hz, tx_gain_db=_SOME_GAIN_DB))
        except BenchError as error:
            findings += from_error(name, error)
        return findings
    finally:
        client.close()


def _identity_findings(where: str, spec: PlutoSpec, facts: Mapping[str, str], num_rx: int) -> list[Finding]:
    serial = facts.get("hw_serial", "unknown")
    model, firmware = facts.get("hw_model", "unknown model"), facts.get("fw_version", "unknown")
    findings = [Finding("ok", f"{where}: {model}, serial {serial}, firmware {firmware}")]
    if spec.serial is not None and spec.serial != serial:
        findings.append(
            Finding(
                "fail",
                f"{where}: the serial number is {serial}, the bench file says {spec.serial}",
                "another radio answers there: check the uri and the cables, or correct the serial number",
            )
        )
    if spec.channels > num_rx:
        findings.append(
            Finding(
                "fail",
                f"{where}: {spec.channels} channels are wanted, the radio shows {num_rx}",
                "set channels = 1, or switch the radio to 2r2t (fw_setenv mode 2r2t) and restart it",
            )
        )
    return findings


def trigger_findings(bench: BenchSpec, where: str, present: bool) -> list[Finding]:
    """Whether a radio has the transfer trigger that the bench needs.

    Args:
        bench: the bench.
        where: name and uri of the radio.
        present: whether it has it.
    """
    if present or bench.radio.trigger != "clock":
        return [Finding("ok", f"{where}: {'has the' if present else 'no'} transfer trigger")]
    return [
        Finding(
            "fail",
            f'{where}: radio.trigger = "clock" needs the transfer trigger, device {TRIGGER}',
            'install PlutoSDR firmware 0.38 or newer, or set radio.trigger = "network"',
        )
    ]


def stage_findings(bench: BenchSpec, name: str, spec: StageSpec, wire: Wire) -> list[Finding]:
    """One stage: does its controller answer, in which state, and do its settings fit the bench file.

    Opening a USB port may restart the controller; it moves nothing.

    Args:
        bench: the bench.
        name: of the stage.
        spec: the stage.
        wire: opens the port.

    Raises:
        BenchError: it does not answer.
    """
    device = spec.device
    assert device.port is not None
    transport = wire.serial(device.port, baud=BAUD)
    try:
        if device.driver == "zaber":
            return [_zaber_finding(name, device.port, transport)]
        line = GrblLine(transport)
        report, restarted = _first_report(line)
        state = f"state {report.state}" + (", restarted as its port was opened" if restarted else "")
        if report.state not in ("Idle", "Alarm"):
            return [Finding("warn", f"{name} at {device.port}: GRBL, {state}; not asked further while it is busy")]
        version = next((each for each in line.ask("$I") if each.startswith("[VER:")), "[VER:unknown]")
        findings = [Finding("ok", f"{name} at {device.port}: GRBL {version[5:-1].rstrip(':')}, {state}")]
        try:
            settings = parse_settings(line.ask("$$"))
            machine = machine_of(settings, spec, end_stops_m(spec, bench.array.region_m), device.port)
        except BenchError as error:
            return findings + from_error(name, error)
        return findings + [Finding("warn", f"{name}: {words}") for words in machine.warnings]
    finally:
        transport.close()


def _first_report(line: GrblLine) -> tuple[Report, bool]:
    """The first status report, and whether a restart came before it; an Arduino takes two seconds to start."""
    restarted = False
    deadline_s = time.monotonic() + _WAKE_S
    while True:
        try:
            return line.status(timeout_s=0.2, attempts=1), restarted
        except PositionLost:
            restarted = True
        except StageFault:
            if time.monotonic() >= deadline_s:
                raise


def _zaber_finding(name: str, port: str, transport: Transport) -> Finding:
    """Every Zaber device answers an empty command, such as: @01 0 OK IDLE WR 0 (Zaber ASCII protocol)."""
    transport.send(b"/\n")
    heard = b""
    deadline_s = time.monotonic() + _ZABER_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            heard += transport.receive(256, timeout_s=left_s)
        except TransportTimeout:
            break
    replies = [line for line in heard.decode("ascii", "replace").split() if line.startswith("@")]
    if not replies:
        return Finding(
            "fail", f"{name} at {port}: no Zaber device answers", "check port, power, and ASCII at 115200 baud"
        )
    return Finding("ok", f"{name} at {port}: {len(replies)} Zaber devices answer")
