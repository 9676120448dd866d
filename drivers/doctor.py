"""The doctor: looks at everything a bench needs, within seconds, and says what to mend. Nothing moves or radiates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

from drivers.clock import NodeClock
from drivers.cpu_freq import check_writable, find_policies, is_pinned
from drivers.doctor_devices import radio_findings, stage_findings
from drivers.doctor_packages import package_findings, port_findings
from drivers.energy_sensors import find_hwmon, find_rapl
from drivers.findings import Finding, from_error
from drivers.leases import Grant, Leases, Resource, bench_resources
from drivers.leases import stage as stage_resource
from drivers.transport import LiveWire, Wire
from drivers.watchdog import side_by_side
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, DeviceError
from testbed.core.hardware import MeterSpec, PlutoSpec

Look = Callable[[], list[Finding]]

DEVICE_S = 3.0
"""Longest time that looking at one device may take; all are looked at together."""
_LATE_S = 1e-3


def check(bench: BenchSpec | None = None, *, leases: Leases | None = None, wire: Wire | None = None) -> list[Finding]:
    """Look at packages, ports, leases, clock and meters of this machine, and at the radios and stages of a bench.

    Args:
        bench: whose devices; without it only this machine.
        leases: who uses what.
        wire: how ports of stages are opened.

    Returns:
        what was found: this machine first, then the devices in the bench file's order.
    """
    grants, findings = _lease_findings(leases or Leases(), bench)
    looks: dict[str, Look] = {
        "packages": partial(package_findings, _drivers(bench)),
        "serial ports": partial(port_findings, _port_files(bench)),
        "clock": _clock_findings,
        **{f"meter of {name}": partial(_meter_findings, name, spec) for name, spec in _meters(bench).items()},
    }
    if bench is not None:
        findings += _missing_findings(bench)
        taken = {resource: grant for grant in grants for resource in grant.resources}
        looks |= dict(_device_looks(bench, taken, wire or LiveWire()))
    seen: dict[str, list[Finding]] = {}
    failures = side_by_side(
        {name: partial(_keep, seen, name, look) for name, look in looks.items()}, timeout_s=DEVICE_S
    )
    for name in looks:
        findings += from_error(name, failures[name]) if name in failures else seen[name]
    return findings


def _keep(seen: dict[str, list[Finding]], name: str, look: Look) -> None:
    seen[name] = look()


def _drivers(bench: BenchSpec | None) -> set[str]:
    if bench is None:
        return set()
    stages = [each.stage.device for each in bench.array.antennas if each.stage is not None]
    serial = {device.driver for device in stages if device.port and not device.port.startswith("socket://")}
    return serial | {spec.driver for _, spec in _radios(bench)}


def _radios(bench: BenchSpec) -> list[tuple[str, PlutoSpec]]:
    receivers = [(f"receiver-{index}", spec) for index, spec in enumerate(bench.array.radios)]
    return receivers + [(board.name, board.radio) for board in bench.boards]


def _port_files(bench: BenchSpec | None) -> list[str]:
    """Serial ports of the bench that are files; the trigger's is never opened, which would pull its lines."""
    if bench is None:
        return []
    ports = [each.stage.device.port for each in bench.array.antennas if each.stage is not None]
    ports += [bench.radio.trigger_line.partition(":")[2]] if bench.radio.trigger_line else []
    return [port for port in ports if port is not None and port.startswith("/")]


def _meters(bench: BenchSpec | None) -> dict[str, MeterSpec]:
    """Meters that need something of the machine, the first node of each kind."""
    kinds: dict[MeterSpec, str] = {}
    for board in bench.boards if bench is not None else ():
        if board.meter.cpu_frequency or board.meter.energy in ("rapl", "hwmon"):
            kinds.setdefault(board.meter, board.name)
    return {name: spec for spec, name in kinds.items()}


def _device_looks(bench: BenchSpec, taken: dict[Resource, Grant], wire: Wire) -> Iterator[tuple[str, Look]]:
    for name, radio in _radios(bench):
        if radio.uri is not None:
            yield f"radio {name}", partial(radio_findings, bench, name, radio)
    for index, antenna in enumerate(bench.array.antennas):
        if antenna.stage is None or antenna.stage.device.port is None:
            continue
        name, port = f"stage-{index}", antenna.stage.device.port
        grant = taken.get(stage_resource(port))
        if grant is not None:
            words = f"{name} at {port}: not asked, {grant.owner} on {grant.host} uses it"
            yield name, partial(list, [Finding("ok", words)])
        else:
            yield name, partial(stage_findings, bench, name, antenna.stage, wire)


def _missing_findings(bench: BenchSpec) -> list[Finding]:
    """What the bench file does not say, though real devices need it."""
    missing = [name for name, spec in _radios(bench) if spec.uri is None]
    if not bench.array.radios:
        missing.insert(0, "the receiver (array.radios)")
    missing += [
        f"stage-{index}"
        for index, antenna in enumerate(bench.array.antennas)
        if antenna.stage is not None and antenna.stage.device.port is None
    ]
    findings = []
    if missing:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        findings.append(
            Finding(
                "warn",
                f"the bench file does not say how these are reached: {shown}",
                "give radio.uri and stage.device.port; only --backend lab needs them",
            )
        )
    uris = [spec.uri for _, spec in _radios(bench) if spec.uri]
    for uri in sorted({uri for uri in uris if uris.count(uri) > 1}):
        findings.append(Finding("fail", f"{uri} stands for {uris.count(uri)} radios", "give each radio its own uri"))
    return findings


def _lease_findings(leases: Leases, bench: BenchSpec | None) -> tuple[list[Grant], list[Finding]]:
    broken: list[DeviceError] = []
    known = leases.known(broken)
    ours = bench_resources(bench) if bench is not None else ()
    held: list[Grant] = []
    findings = [finding for error in broken for finding in from_error("leases", error)]
    for grant in known:
        ended = grant.ended(time.time())
        if ended is None:
            held.append(grant)
        wanted = any(each.conflicts(one) for each in grant.resources for one in ours)
        what = ", ".join(f"{each.kind} {each.name}" for each in grant.resources)
        if ended is None and not grant.resources:
            continue  # of a board whose radio is in its controller's lease
        if ended is not None:
            findings.append(Finding("ok", f"a lease of {grant.owner} is left over, {ended}; the next run clears it"))
        else:
            who = grant.who(time.time())
            findings.append(Finding("warn" if wanted else "ok", f"bench {grant.bench} is leased by {who}: {what}"))
    return held, findings or [Finding("ok", f"nothing is leased ({leases.folder})")]


def _clock_findings() -> list[Finding]:
    """How late this machine is when it waits for an instant: bursts that a network message starts are as late."""
    clock = NodeClock()
    late_s = []
    for _ in range(20):
        at_s = clock.now_s() + 2e-3
        clock.wait_until(at_s)
        late_s.append(clock.now_s() - at_s)
    words = (
        f"waits end {statistics.median(late_s) * 1e6:.0f} us late in the median, {max(late_s) * 1e6:.0f} us at worst"
    )
    if statistics.median(late_s) < _LATE_S:
        return [Finding("ok", f"clock: {words}")]
    return [Finding("warn", f"clock: {words}", 'end other programs, or set radio.trigger = "clock"')]


def _meter_findings(name: str, spec: MeterSpec) -> list[Finding]:
    """Whether this machine could be the node: it may also be another one, so nothing of this is a failure."""
    findings: list[Finding] = []
    where = f"meter of {name}, if this machine is that node"
    try:
        if spec.energy == "rapl":
            findings += [Finding("ok", f"{where}: {sensor.name}") for sensor in find_rapl(spec.sysfs)]
        elif spec.energy == "hwmon":
            findings += [Finding("ok", f"{where}: {sensor.name}") for sensor in find_hwmon(spec.sysfs, spec.sensor)]
    except BenchError as error:
        findings += from_error(where, error, status="warn")
    if spec.cpu_frequency:
        findings += _frequency_findings(where, spec.sysfs)
    return findings


def _frequency_findings(where: str, sysfs: str) -> list[Finding]:
    try:
        policies = find_policies(sysfs)
        for policy in policies:
            check_writable(policy)
        pinned = any(is_pinned(policy) for policy in policies)
    except BenchError as error:
        return from_error(where, error, status="warn")
    if pinned:
        return [
            Finding(
                "warn",
                f"{where}: the processor's frequency is pinned; a run sets it, one that was killed leaves it so",
                f"write the hardware's limits back to scaling_min_freq and scaling_max_freq in {policies[0].folder}",
            )
        ]
    return [Finding("ok", f"{where}: the processor's frequency can be set")]
