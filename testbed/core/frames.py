"""Between the array frame and the frame of one antenna's stage: array point = origin + rotation @ stage point."""

from __future__ import annotations

import numpy as np

from testbed.core.bench import Interval, StageSpec


def _rotation(spec: StageSpec) -> np.ndarray:
    angle_rad = np.deg2rad(spec.rotation_deg)
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cosine, -sine], [sine, cosine]])


def to_array(point_m: np.ndarray, spec: StageSpec) -> np.ndarray:
    """A stage-frame point in the array frame.

    r = origin + R(rotation) q

    Args:
        point_m: q, stage frame, metres, shape [..., 2].
        spec: how the stage lies in the array frame.

    Returns:
        r, array frame, metres, shape [..., 2].
    """
    return np.asarray(point_m, dtype=np.float64) @ _rotation(spec).T + np.asarray(spec.origin_m)


def to_stage(point_m: np.ndarray, spec: StageSpec) -> np.ndarray:
    """An array-frame point in the stage frame.

    q = R(rotation)^T (r - origin)

    Args:
        point_m: r, array frame, metres, shape [..., 2].
        spec: how the stage lies in the array frame.

    Returns:
        q, stage frame, metres, shape [..., 2].
    """
    return (np.asarray(point_m, dtype=np.float64) - np.asarray(spec.origin_m)) @ _rotation(spec)


def end_stops_m(spec: StageSpec, region_m: tuple[Interval, Interval]) -> np.ndarray:
    """A stage's end stops: its own travel, or the smallest box that holds the array's region.

    Args:
        spec: the stage.
        region_m: where antennas may be, array frame.

    Returns:
        [axis, (low, high)], stage frame, metres, shape [2, 2].
    """
    if spec.travel_m is not None:
        return np.array(spec.travel_m, dtype=np.float64)
    corners = to_stage(np.array([(first, second) for first in region_m[0] for second in region_m[1]]), spec)
    return np.stack([corners.min(axis=0), corners.max(axis=0)], axis=1)
