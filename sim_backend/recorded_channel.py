"""Channels measured in a lab, given back between the points they were measured at."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import Delaunay, QhullError

from testbed.core.errors import ConfigError, LimitError

_SAME_POINT_M = 1e-9
_OFF_PLANE_M = 1e-6
_OFF_EDGE = 1e-6  # of a simplex: positions on the edge of the recorded region are inside for all their rounding


def save_recording(
    file: str | Path,
    *,
    nodes: Sequence[str],
    positions_m: np.ndarray,
    channel: np.ndarray,
    frequencies_hz: np.ndarray | None = None,
) -> None:
    """Write measured channels as `RecordedChannel` reads them.

    Args:
        file: the npz file; written anew.
        nodes: names, num_nodes of them.
        positions_m: where the antenna was, array frame, shape [num_points, 2 or 3].
        channel: baseband gains, shape [num_points, num_nodes], or [num_points, num_frequencies, num_nodes].
        frequencies_hz: offsets from the carrier, rising, shape [num_frequencies].

    Raises:
        ConfigError: the arrays do not fit one another, or hold values that are not finite.
    """
    arrays = {"nodes": np.array(list(nodes)), "positions_m": np.asarray(positions_m), "channel": np.asarray(channel)}
    if frequencies_hz is not None:
        arrays["frequencies_hz"] = np.asarray(frequencies_hz)
    _check(Path(file), arrays)
    with open(file, "wb") as opened:  # numpy adds .npz to a name, not to an open file
        np.savez_compressed(opened, allow_pickle=False, **arrays)


class RecordedChannel:
    """Measured channels as a function of position and frequency.

    Between the points the channel is linear in position, real and imaginary part alike, over the simplices of the
    points' Delaunay triangulation (along a line between neighbours); at a recorded point it is the recorded value.
    Linear in frequency too; beyond the recorded band the edge's value holds. A linear channel is good where points lie
    closer than about a tenth of a wavelength: halfway between two points that are a step apart, a plane wave loses
    1 - cos(pi step / wavelength) of its amplitude.

    Args:
        file: npz file with `nodes`, `positions_m`, `channel` and, for a channel that varies in frequency,
            `frequencies_hz`, as `save_recording` writes it.
        nodes: the names that the bench uses.

    Raises:
        ConfigError: the file is absent or damaged, lacks a key or a node, or its values are not finite.
    """

    def __init__(self, file: str | Path, nodes: Sequence[str]) -> None:
        self._file = Path(file)
        arrays = _load(self._file)
        _check(self._file, arrays)
        names = arrays["nodes"].tolist()
        absent = [node for node in nodes if node not in names]
        if absent:
            raise ConfigError(
                f"the recording holds no channel of {', '.join(absent[:8])}",
                file=self._file,
                key="nodes",
                remedy=f"record these nodes too, or name the bench's nodes as it does: {', '.join(names[:8])}",
            )
        self._column = {name: index for index, name in enumerate(names)}
        self._points_m = arrays["positions_m"].astype(np.float64)
        channel = arrays["channel"].astype(np.complex128)
        # [num_points, num_frequencies or 1, num_nodes]
        self._channel = channel if channel.ndim == 3 else channel[:, None]
        self.frequencies_hz: np.ndarray | None = arrays.get("frequencies_hz")
        """Offsets from the carrier, shape [num_frequencies]; None for a channel that is flat."""
        self._centre_m = self._points_m.mean(axis=0)
        _, extent_m, self._axes = np.linalg.svd(self._points_m - self._centre_m, full_matrices=False)
        # points on a line or in a plane span fewer dimensions than their coordinates have
        self._axes = self._axes[extent_m > _OFF_PLANE_M]
        self._flat_m = (self._points_m - self._centre_m) @ self._axes.T
        try:
            self._triangulation = Delaunay(self._flat_m) if len(self._axes) > 1 else None
        except QhullError as trouble:
            raise ConfigError(
                "the recorded points cannot be triangulated", file=self._file, key="positions_m", remedy=str(trouble)
            ) from trouble

    def path_gain(self, node: str) -> float:
        """Mean power gain over points and frequencies.

        Raises:
            KeyError: a stranger.
        """
        return float(np.mean(np.abs(self._channel[..., self._column[node]]) ** 2))

    def channels(self, nodes: Sequence[str], positions_m: np.ndarray) -> np.ndarray:
        """Gains at the carrier.

        Args:
            nodes: their names.
            positions_m: antennas, array frame, shape [num_antennas, 2 or 3].

        Returns:
            shape [num_antennas, num_nodes], complex128.

        Raises:
            KeyError: a stranger.
            LimitError: an antenna is outside the recorded points.
        """
        return self.response(nodes, positions_m, np.zeros(1))[0]

    def response(self, nodes: Sequence[str], positions_m: np.ndarray, frequencies_hz: np.ndarray) -> np.ndarray:
        """Gains at some frequencies.

        Args:
            nodes: their names.
            positions_m: antennas, array frame, shape [num_antennas, 2 or 3].
            frequencies_hz: offsets from the carrier, shape [num_frequencies].

        Returns:
            shape [num_frequencies, num_antennas, num_nodes], complex128.

        Raises:
            KeyError: a stranger.
            LimitError: an antenna is outside the recorded points.
        """
        columns = [self._column[node] for node in nodes]
        frequencies_hz = np.asarray(frequencies_hz, dtype=np.float64)
        per_antenna = []
        for point_m in self._complete(positions_m):
            points, weights = self._corners(point_m)
            # [recorded frequencies or 1, num_nodes]
            recorded = np.tensordot(weights, self._channel[points][..., columns], axes=1)
            per_antenna.append(self._between_frequencies(recorded, frequencies_hz))
        return np.stack(per_antenna, axis=1)

    def _complete(self, positions_m: np.ndarray) -> np.ndarray:
        """Positions in the plane of the array stand at height 0 of a recording in space."""
        positions_m = np.asarray(positions_m, dtype=np.float64)
        missing = self._points_m.shape[1] - positions_m.shape[1]
        if missing < 0:
            raise LimitError(
                f"{self._file}: the recorded points have 2 coordinates, an antenna {positions_m.shape[1]}",
                remedy="give antenna positions in the array's plane",
            )
        return np.pad(positions_m, ((0, 0), (0, missing)))

    def _corners(self, point_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Recorded points around a point, and their weights."""
        distance_m = np.linalg.norm(self._points_m - point_m, axis=1)
        nearest = int(np.argmin(distance_m))
        if distance_m[nearest] <= _SAME_POINT_M:
            return np.array([nearest]), np.ones(1)
        flat_m = self._axes @ (point_m - self._centre_m)
        off_m = np.linalg.norm(point_m - self._centre_m - flat_m @ self._axes)
        found = None if off_m > _OFF_PLANE_M or not len(flat_m) else self._simplex(flat_m)
        if found is None:
            at = ", ".join(f"{value:.6g}" for value in point_m)
            raise LimitError(
                f"{self._file}: an antenna at ({at}) m is outside the recorded points; "
                f"the nearest is {distance_m[nearest]:.3g} m away",
                remedy="record a larger region, or narrow array.region_m to the recorded one",
            )
        return found

    def _simplex(self, flat_m: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if self._triangulation is None:
            line_m = self._flat_m[:, 0]
            order = np.argsort(line_m, kind="stable")
            right = int(np.searchsorted(line_m[order], flat_m[0]))
            if right in (0, len(order)):
                return None
            points = order[right - 1 : right + 1]
            share = (flat_m[0] - line_m[points[0]]) / (line_m[points[1]] - line_m[points[0]])
            return points, np.array([1 - share, share])
        simplex = int(self._triangulation.find_simplex(flat_m, tol=_OFF_EDGE))
        if simplex < 0:
            return None
        transform = self._triangulation.transform[simplex]
        # barycentric coordinates, [num_dimensions]
        inner = transform[:-1] @ (flat_m - transform[-1])
        return self._triangulation.simplices[simplex], np.append(inner, 1 - inner.sum())

    def _between_frequencies(self, recorded: np.ndarray, frequencies_hz: np.ndarray) -> np.ndarray:
        if self.frequencies_hz is None:
            return np.broadcast_to(recorded, (len(frequencies_hz), recorded.shape[1]))
        columns = [np.interp(frequencies_hz, self.frequencies_hz, column) for column in recorded.T]
        return np.stack(columns, axis=1)


def _load(file: Path) -> dict[str, np.ndarray]:
    remedy = "world.recording names an npz file as sim_backend.recorded_channel.save_recording writes it"
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {key: opened[key] for key in opened.files}
    except FileNotFoundError as absent:
        raise ConfigError("there is no such recording", file=file, key="world.recording", remedy=remedy) from absent
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as damaged:
        raise ConfigError(
            f"this is not a recording of channels ({damaged})", file=file, key="world.recording", remedy=remedy
        ) from damaged


def _check(file: Path, arrays: dict[str, np.ndarray]) -> None:
    for key, kinds in {"nodes": "U", "positions_m": "fiu", "channel": "cfiu", "frequencies_hz": "fiu"}.items():
        array = arrays.get(key)
        if array is None:
            if key != "frequencies_hz":
                raise ConfigError("the recording lacks this array", file=file, key=key, remedy=_LAYOUT)
        elif array.dtype.kind not in kinds or array.size == 0:
            raise ConfigError(f"an array of {array.dtype} {array.shape}", file=file, key=key, remedy=_LAYOUT)
        elif array.dtype.kind in "cf" and not np.all(np.isfinite(array)):
            wrong = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ConfigError(
                f"the value at {wrong} is not finite",
                file=file,
                key=key,
                remedy="leave out points at which the measurement failed",
            )
    _check_shapes(file, arrays)


def _check_shapes(file: Path, arrays: dict[str, np.ndarray]) -> None:
    nodes, positions_m, channel = arrays["nodes"], arrays["positions_m"], arrays["channel"]
    frequencies_hz = arrays.get("frequencies_hz")
    if nodes.ndim != 1 or len(set(nodes.tolist())) != len(nodes):
        raise ConfigError("the names must be one row without repetition", file=file, key="nodes", remedy=_LAYOUT)
    if positions_m.ndim != 2 or positions_m.shape[1] not in (2, 3):
        raise ConfigError(f"the shape is {positions_m.shape}", file=file, key="positions_m", remedy=_LAYOUT)
    if len(np.unique(positions_m, axis=0)) != len(positions_m):
        raise ConfigError(
            "a point occurs twice", file=file, key="positions_m", remedy="average repeated measurements of a point"
        )
    middle: tuple[int, ...] = ()
    if frequencies_hz is not None:
        middle = (frequencies_hz.size,)
        if frequencies_hz.ndim != 1 or np.any(np.diff(frequencies_hz) <= 0):
            raise ConfigError("the frequencies must rise", file=file, key="frequencies_hz", remedy=_LAYOUT)
    expected = (len(positions_m), *middle, len(nodes))
    if channel.shape != expected:
        raise ConfigError(
            f"the shape is {channel.shape}, the other arrays ask for {expected}",
            file=file,
            key="channel",
            remedy=_LAYOUT,
        )


_LAYOUT = (
    "nodes: names [K]; positions_m: [P, 2 or 3]; channel: [P, K], or with frequencies_hz [F], rising: [P, F, K]; "
    "see sim_backend.recorded_channel.save_recording"
)
