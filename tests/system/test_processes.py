"""Processes: started by hand, interrupted, killed. Nothing is left running, nothing incomplete says it is done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.core import messages
from testbed.core.orders import Move, Order, Train, Trained
from testbed.engine.observe import Observer
from testbed.engine.recorder import read_rows, read_steps
from tests.system.small_runs import run, small, small_arguments

TESTBED = (sys.executable, "-m", "testbed")
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}


def _children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: list[int], patience_s: float = 15.0) -> list[int]:
    """Those still alive after a while."""
    left = pids
    with subprocess.Popen(["sleep", str(patience_s)]) as timer:
        while left and timer.poll() is None:
            left = [pid for pid in left if _alive(pid)]
        timer.kill()
    return left


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run on the command line that has finished its first round."""
    command = [*TESTBED, "run", "quickstart", "--out", str(tmp_path), "--node-processes", "1"]
    command += small_arguments("rounds=50")
    # who runs the tests in the background of a shell ignores interrupts, and a child would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    with subprocess.Popen(["sleep", "90"]) as timer:
        while timer.poll() is None and process.poll() is None:
            rows = list(tmp_path.glob("*/rounds.jsonl"))
            if rows and len(rows[0].read_text().splitlines()) >= 2:
                break
        timer.kill()
    assert process.poll() is None, process.communicate()[0]
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_cleanly(
    number: signal.Signals, code: int, running: subprocess.Popen[str], tmp_path: Path
) -> None:
    nodes = _children(running.pid)
    assert nodes
    running.send_signal(number)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == code, printed
    assert _wait_until_gone(nodes) == []
    [folder] = tmp_path.iterdir()
    assert f"testbed resume {folder}" in " ".join(printed.split())
    assert "Traceback" not in printed
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert read_rows(folder)


def test_a_killed_controller_leaves_no_node_behind(running: subprocess.Popen[str]) -> None:
    nodes = _children(running.pid)
    assert nodes
    running.kill()
    assert _wait_until_gone(nodes) == []


def test_resume_on_the_command_line(tmp_path: Path) -> None:
    """A run that was interrupted and resumed ends as one that was not."""
    whole = run(small("ota-fedavg"), tmp_path / "whole")

    class Interrupt(Observer):
        def round_started(self, index: int) -> None:
            if index == 2:
                raise KeyboardInterrupt

    loaded = small("ota-fedavg")
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path / "cut", observer=Interrupt())
    [folder] = (tmp_path / "cut").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    done = subprocess.run(
        [*TESTBED, "resume", str(folder)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "summary.json").read_text()) == whole.summary
    again = subprocess.run(
        [*TESTBED, "replay", str(folder)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr


def test_nodes_started_by_hand(tmp_path: Path) -> None:
    """Two processes, one of them with two nodes, knock at the controller's door."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    loaded = small("fedavg", f"bench.link.listen='{address}'", "rounds=1")
    start = [*TESTBED, "node", "--connect", address]
    nodes = [
        subprocess.Popen([*start, "--id", "node-00", "--id", "node-02", "--threads", "1"], env=ENVIRONMENT),
        subprocess.Popen([*start, "--id", "node-01", "--threads", "1"], env=ENVIRONMENT),
    ]
    try:
        result = run(loaded, tmp_path / "runs", node_processes=0)
        assert result.summary["status"] == "done"
        assert result.rounds[1]["participants"] == ["node-00", "node-01", "node-02"]
        assert [node.wait(timeout=30) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
            node.wait()


class _KillOne(Observer):
    """Kills the process of node-01 when round 2 starts to train."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.round = 0

    def round_started(self, index: int) -> None:
        self.round = index

    def order_started(self, order: Order) -> None:
        if self.round == 2 and isinstance(order, Train):
            victims = [pid for pid in _children(os.getpid()) if "node-01" in Path(f"/proc/{pid}/cmdline").read_text()]
            assert len(victims) == 1
            os.kill(victims[0], signal.SIGKILL)


def test_a_node_that_dies_is_data(tmp_path: Path) -> None:
    loaded = small("ota-fedavg", "scheme.move=false")
    result = run(loaded, tmp_path, node_processes=3, observer=_KillOne(tmp_path))
    assert result.summary["status"] == "done"
    assert result.rounds[1]["participants"] == ["node-00", "node-01", "node-02"]
    assert result.rounds[2]["participants"] == ["node-00", "node-02"]
    assert result.rounds[2]["missing"] == ["node-01"]
    assert result.rounds[3]["participants"] == ["node-00", "node-02"]
    trained = [step.reply for step in read_steps(result.folder) if isinstance(step.reply, Trained)]
    assert [reply.missing for reply in trained] == [(), ("node-01",), ("node-01",)]


def test_an_order_beyond_the_limits_ends_the_run(tmp_path: Path) -> None:
    """The scheme asks for a place outside the region: nothing moves, the run says failed."""
    scheme = tmp_path / "outside.py"
    scheme.write_text(
        "import numpy as np\n"
        "from testbed.core.orders import move\n"
        "from testbed.core.scheme import Scheme\n"
        "class Outside(Scheme):\n"
        '    """Leaves the region."""\n'
        "    def start(self, fleet, adapter):\n"
        "        return fleet\n"
        "    def round(self, state, rng):\n"
        "        yield from move(state.array.home_m + 1.0)\n"
        "        return state\n"
    )
    arguments = small_arguments(f"scheme={{name='{scheme}:Outside'}}")
    command = [*TESTBED, "run", "quickstart", "--backend", "sim", "--out", str(tmp_path / "runs"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "outside the region" in " ".join(done.stderr.split())
    [folder] = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not any(isinstance(step.order, Move) for step in read_steps(folder))


def test_a_node_of_another_protocol_version_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The node ends with the sentence and exit code 5; so does the controller."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    old = (
        "import testbed.core.messages as messages\n"
        f"messages.PROTOCOL = {messages.PROTOCOL + 1}\n"
        "import sys\n"
        f"sys.argv = ['testbed', 'node', '--connect', '{address}', '--id', 'node-00']\n"
        "from testbed.cli import main\n"
        "sys.exit(main())\n"
    )
    node = subprocess.Popen([sys.executable, "-c", old], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    arguments = small_arguments(f"bench.link.listen='{address}'", "bench.link.connect_timeout_s=30")
    command = [*TESTBED, "run", "quickstart", "--out", str(tmp_path), "--node-processes", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    _, said = node.communicate(timeout=30)
    assert done.returncode == 5, done.stderr
    assert f"protocol version {messages.PROTOCOL + 1}" in " ".join(done.stderr.split())
    assert node.returncode == 5, said
    assert "protocol version" in said


def test_a_controller_that_is_not_there(tmp_path: Path) -> None:
    command = [*TESTBED, "node", "--connect", "nowhere", "--id", "a"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert "tcp://HOST:PORT" in done.stderr


def test_the_how_to_runs_as_printed(tmp_path: Path) -> None:
    """The third scheme, copied out of the document with its experiment file."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "new-scheme.md").read_text()
    blocks = {kind: text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "toml")}
    assert len(blocks["python"].splitlines()) < 60
    (tmp_path / "strongest.py").write_text(blocks["python"])
    (tmp_path / "strongest.toml").write_text(blocks["toml"])
    for command in (["dry", "strongest.toml"], ["run", "strongest.toml", "--backend", "sim"]):
        changes = small_arguments("rounds=2") if command[0] == "run" else []
        done = subprocess.run(
            [*TESTBED, *command, *changes], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    rows = read_rows(folder)
    assert [len(row["participants"]) for row in rows] == [0, 3, 3]
    assert rows[1]["scheme"]["chosen"]
