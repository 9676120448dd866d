"""How fast the native client talks to an emulated radio, against libiio on the same radio in the same run.

    .venv/bin/python -m benchmarks.pluto_link [--repeats 5]

The radio is emulated in a process of its own, in virtual time: what is measured is the protocol and the emulation.
Peers are `iio_readdev` (apt-get install libiio-utils) for samples and pylibiio for attributes, each left out where it
is not installed. A real PlutoSDR is slower than either.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from drivers.iiod_buffer import IiodBuffer
from drivers.iiod_client import IiodClient
from drivers.pluto_native import NativePort
from drivers.pluto_port import PlutoSettings
from sim_backend.emulators.host import Emulators
from testbed.core.bench import BenchSpec

BLOCK = 65_536
NUM_BLOCKS = 64
NUM_READS = 1000
PEER = "iio_readdev"
BENCH = {
    "name": "one",
    "array": {
        "origin_m": [0.0, 4.0, 1.0],
        "region_m": [[0.0, 0.375], [0.0, 0.375]],
        "min_spacing_m": 0.0625,
        "antennas": [{"home_m": [0.05, 0.05]}],
    },
    "nodes": [{"name": "node-00"}],
    "radio": {"trigger": "clock"},
}


def serve() -> None:
    """Emulate one bench, print the receiver's address, end with standard input."""
    with Emulators(BenchSpec.model_validate(BENCH)) as emulators:
        print(emulators.addresses["radios"]["receiver-0"], flush=True)
        sys.stdin.read()


def rate_ms_s(action: Callable[[], object], num_samples: int) -> float:
    """Million samples a second."""
    began = time.perf_counter()
    action()
    return num_samples / (time.perf_counter() - began) / 1e6


def read_us(read: Callable[[], object]) -> float:
    """Median microseconds of one read."""
    times = []
    for _ in range(NUM_READS):
        began = time.perf_counter()
        read()
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def stream(client: IiodClient) -> None:
    """Blocks from one open buffer, as `iio_readdev` reads them."""
    buffer = IiodBuffer(client, client.context.device("cf-ad9361-lpc"))
    buffer.open(BLOCK, 0b11)
    samples = np.empty((BLOCK, 2), "<i2")
    for _ in range(NUM_BLOCKS):
        buffer.read_into(samples.data.cast("B"), timeout_s=2.0)
    buffer.close()


def captures(port: NativePort) -> None:
    """Fresh buffers, as a run opens them."""
    for _ in range(NUM_BLOCKS):
        capture = port.capture(BLOCK)
        capture.wait(2.0)
        capture.close()


def readdev(uri: str) -> None:
    """The same blocks through libiio."""
    command = [PEER, "-u", uri, "-b", str(BLOCK), "-s", str(NUM_BLOCKS * BLOCK), "cf-ad9361-lpc"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def libiio_read(uri: str) -> dict[str, Callable[[], object]]:
    """One attribute through pylibiio, nothing where it is not installed."""
    try:
        import iio

        channel = iio.Context(uri).find_device("ad9361-phy").find_channel("voltage0", False)
    except (ImportError, OSError):
        return {}
    return {"pylibiio": lambda: channel.attrs["hardwaregain"].value}


def measure(uri: str, repeats: int) -> None:
    """Print the figures, medians of the repeats."""
    port = NativePort(uri)
    port.configure(PlutoSettings(2_450_000_000, 20_000_000, 18_000_000, 50.0, -10.0))
    client = IiodClient(uri)
    total = NUM_BLOCKS * BLOCK
    rates: dict[str, list[float]] = {"one open buffer": [], "fresh captures": []}
    for _ in range(repeats):
        rates["one open buffer"].append(rate_ms_s(lambda: stream(client), total))
        rates["fresh captures"].append(rate_ms_s(lambda: captures(port), total))
        if shutil.which(PEER):
            rates.setdefault(PEER, []).append(rate_ms_s(lambda: readdev(uri), total))
    for name, values in rates.items():
        peer = f", iio_readdev {statistics.median(rates[PEER]):.1f} MS/s" if PEER in rates and name != PEER else ""
        print(f"{name}: {statistics.median(values):.1f} MS/s at {BLOCK} samples a block{peer}")
    reads = {"native": lambda: client.read("iio:device0", "hardwaregain", channel="voltage0"), **libiio_read(uri)}
    times = {name: [read_us(read) for _ in range(repeats)] for name, read in reads.items()}
    for name, values in times.items():
        print(f"attribute, {name}: {statistics.median(values):.0f} us (lowest {min(values):.0f})")
    client.close()
    port.close()


def main() -> None:
    """Start the radio and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    command = [sys.executable, "-m", "benchmarks.pluto_link", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as radio:
        assert radio.stdout is not None
        assert radio.stdin is not None
        try:
            measure(radio.stdout.readline().strip(), arguments.repeats)
        finally:
            radio.stdin.close()


if __name__ == "__main__":
    main()
