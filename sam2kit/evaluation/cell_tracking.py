"""Compute the scores SEG, DET and TRA of the Cell Tracking Challenge.

DET and TRA compare two graphs (Matula et al., PLOS ONE, 2015). A node is an object in a frame. An
edge connects the nodes of a track in consecutive frames, or a parent with its daughter. The cost of
transforming the result's graph into the reference is compared with the cost of creating the
reference from scratch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from sam2kit.data.lineage import Track
from sam2kit.data.sources.stacks import labels_in, overlapping

# Operation weights of the challenge.
SPLIT_NODE, ADD_NODE, DELETE_NODE = 5, 10, 1
DELETE_EDGE, ADD_EDGE, CHANGE_EDGE = 1, 1.5, 1

Node = tuple[int, int]  # frame, label
Edges = dict[tuple[Node, Node], bool]  # whether the edge connects a parent with its daughter


def match_labels(reference: np.ndarray, result: np.ndarray) -> dict[int, tuple[int, float]]:
    """Match the objects of two label images.

    A reference object is matched with the result's object that covers more than half of it. There
    is at most one such object.

    Args:
        reference, result: ``[H,W]`` non-negative integers.

    Returns:
        By label in ``reference``, the label in ``result`` and the IoU; unmatched objects are
        omitted.
    """
    pairs = overlapping(reference, result)
    reference_areas: Counter[int] = Counter()
    result_areas: Counter[int] = Counter()
    for one, other, count in pairs:
        reference_areas[one] += count
        result_areas[other] += count
    return {
        one: (other, count / (reference_areas[one] + result_areas[other] - count))
        for one, other, count in pairs
        if one and other and 2 * count > reference_areas[one]
    }


class CellTrackingScorer:
    """Score one video, frame by frame.

    Args:
        tracks: reference tracks by label, which define parents and are read by :meth:`result`.
            Labels without an entry have no parent.
        result_tracks: tracks of the result. If None (default), objects have no parents, and an
            object that disappears and reappears is its own parent, as in the challenge's files.
    """

    def __init__(
        self, tracks: Mapping[int, Track], result_tracks: Mapping[int, Track] | None = None
    ) -> None:
        self._tracks, self._result_tracks = tracks, result_tracks
        self._nodes: list[list[int]] = []
        self._result_nodes: list[list[int]] = []
        self._matches: list[dict[int, int]] = []
        self._ious: list[float] = []
        self._segmented = 0

    def add(
        self, markers: np.ndarray | None, segmentation: np.ndarray | None, result: np.ndarray
    ) -> None:
        """Add the next frame.

        Args:
            markers: ``[H,W]`` track labels of the reference. If None, DET and TRA skip the frame.
            segmentation: ``[H,W]`` segmented objects with any labels. If None, SEG skips the frame.
            result: ``[H,W]`` track labels of the result.
        """
        if segmentation is not None:
            matches = match_labels(segmentation, result)
            self._segmented += len(labels_in(segmentation))
            self._ious += [iou for _, iou in matches.values()]
        known = markers is not None
        self._nodes.append(labels_in(markers) if markers is not None else [])
        self._result_nodes.append(labels_in(result) if known else [])
        matches = match_labels(markers, result) if markers is not None else {}
        self._matches.append({one: other for one, (other, _) in matches.items()})

    def result(self) -> dict[str, Any]:
        """Return SEG, DET and TRA, from 0 to 1, and the underlying counts.

        ``SEG`` is the mean IoU over the segmented objects, where unmatched objects have 0. The
        counts are ``segmented`` objects, ``nodes`` and ``edges`` of the reference, and the
        operations ``NS`` (split nodes), ``FN`` and ``FP`` (add and delete nodes), ``ED``, ``EA``
        and ``EC`` (delete, add and change edges). Scores without reference objects are None.
        """
        edges = _edges(self._nodes, self._tracks)
        counts = self._node_operations() | self._edge_operations(edges)
        nodes = sum(map(len, self._nodes))
        detection = SPLIT_NODE * counts["NS"] + ADD_NODE * counts["FN"] + DELETE_NODE * counts["FP"]
        tracking = (
            detection
            + DELETE_EDGE * counts["ED"]
            + ADD_EDGE * counts["EA"]
            + CHANGE_EDGE * counts["EC"]
        )
        return {
            "SEG": sum(self._ious) / self._segmented if self._segmented else None,
            "DET": _normalized(detection, ADD_NODE * nodes),
            "TRA": _normalized(tracking, ADD_NODE * nodes + ADD_EDGE * len(edges)),
            "segmented": self._segmented,
            "nodes": nodes,
            "edges": len(edges),
            **counts,
        }

    def _node_operations(self) -> dict[str, int]:
        splits = missing = extra = 0
        for nodes, result_nodes, matches in zip(
            self._nodes, self._result_nodes, self._matches, strict=True
        ):
            covered = Counter(matches.values())
            splits += sum(count - 1 for count in covered.values())
            missing += len(nodes) - len(matches)
            extra += len(result_nodes) - len(covered)
        return {"NS": splits, "FN": missing, "FP": extra}

    def _edge_operations(self, edges: Edges) -> dict[str, int]:
        # Nodes of the result that match exactly one reference node.
        unique: dict[Node, Node] = {}
        for t, matches in enumerate(self._matches):
            covered = Counter(matches.values())
            unique |= {
                (t, other): (t, one) for one, other in matches.items() if covered[other] == 1
            }
        tracks = self._result_tracks
        if tracks is None:
            result_edges = _edges(self._result_nodes, {}) | _gaps(self._result_nodes)
        else:
            result_edges = _edges(self._result_nodes, tracks)
        mapped = {
            (unique[a], unique[b]): is_parent
            for (a, b), is_parent in result_edges.items()
            if a in unique and b in unique
        }
        return {
            "ED": len(mapped.keys() - edges.keys()),
            "EA": len(edges.keys() - mapped.keys()),
            "EC": sum(edges[e] != is_parent for e, is_parent in mapped.items() if e in edges),
        }


def _edges(nodes: list[list[int]], tracks: Mapping[int, Track]) -> Edges:
    """Return edges of tracks between consecutive frames, and edges to parents."""
    edges: Edges = {
        ((t, label), (t + 1, label)): False
        for t, (now, later) in enumerate(zip(nodes, nodes[1:], strict=False))
        for label in set(now) & set(later)
    }
    for label, track in tracks.items():
        if not track.parent:
            continue
        parent, child = (tracks[track.parent].end, track.parent), (track.begin, label)
        if all(0 <= t < len(nodes) and n in nodes[t] for t, n in (parent, child)):
            edges[parent, child] = True
    return edges


def _gaps(nodes: list[list[int]]) -> Edges:
    """Return edges across the frames in which an object is missing."""
    last: dict[int, int] = {}
    edges: Edges = {}
    for t, labels in enumerate(nodes):
        for label in labels:
            if label in last and t - last[label] > 1:
                edges[(last[label], label), (t, label)] = True
            last[label] = t
    return edges


def _normalized(cost: float, maximum: float) -> float | None:
    return 1 - min(cost, maximum) / maximum if maximum else None
