"""Score tracks as the Cell Tracking Challenge does: SEG, DET and TRA.

DET and TRA compare two graphs (Matula et al., PLOS ONE, 2015). A node is an object on a frame, an
edge joins the nodes of a track on consecutive frames or a parent with its daughter. The cost of the
operations that turn the graph of the result into the reference is compared with the cost of
drawing the reference from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from sam2kit.data.lineage import Track
from sam2kit.data.sources.stacks import labels_in, overlapping

# Weights of the challenge.
SPLIT_NODE, ADD_NODE, DELETE_NODE = 5, 10, 1
DELETE_EDGE, ADD_EDGE, CHANGE_EDGE = 1, 1.5, 1

Node = tuple[int, int]  # frame, label
Edges = dict[tuple[Node, Node], bool]  # whether the edge joins a parent with its daughter


def match_labels(reference: np.ndarray, result: np.ndarray) -> dict[int, tuple[int, float]]:
    """Match the objects of two label images.

    A reference object is matched with the object of the result that covers more than half of it,
    of which there is at most one.

    Args:
        reference, result: ``[H,W]`` non-negative integers.

    Returns:
        Label in ``result`` and IoU by label in ``reference``; objects without a match are left out.
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
        tracks: tracks of the reference by label, for their parents. Labels without an entry have
            no parent.
        result_tracks: tracks of the result. None (default): objects have no parents, and an object
            that disappears and returns is the parent of itself, as in the files of the challenge.
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
            markers: ``[H,W]`` labels of the tracks of the reference. None: the frame has none, and
                is left out of DET and TRA.
            segmentation: ``[H,W]`` segmented objects, with any labels. None: the frame is left out
                of SEG.
            result: ``[H,W]`` labels of the tracks of the result.
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
        """Return SEG, DET and TRA, 0 to 1, and the counts behind them.

        ``SEG`` is the mean IoU over the segmented objects, 0 for an object without a match; the
        counts are ``segmented`` objects, ``nodes`` and ``edges`` of the reference, and the
        operations ``NS`` (nodes to split), ``FN`` and ``FP`` (to add and delete), ``ED``, ``EA``
        and ``EC`` (edges to delete, add and change). A score without reference objects is None.
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
        # Nodes of the result that cover exactly one node of the reference.
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
    """Return the edges of tracks between consecutive frames, and those to parents."""
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
    """Return edges over the frames on which an object is missing."""
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
