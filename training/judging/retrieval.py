"""Retrieval between two modalities by unit vectors: R@k of each query, and the similarity of pairs.

    found = hits(pictures, sounds, media, media, k=10)     # [n], 1 where the own one is among the first ten
    similarity = cosines(pictures, sounds)                 # [n], of pairs

Other clips of a query's medium are left out of what it is compared with: they look and sound alike. Where two
similarities differ by less than TIE, both count in part, so that rounding, which depends on the batch and the
processor, moves no figure: of two equal ones, each is the first by half.
"""

from collections.abc import Sequence

import numpy as np

TIE = 1e-4  # float32 towers differ by about 1e-6 between batch sizes


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each pair of unit vectors [n, d], [n]."""
    products: np.ndarray = (first.astype(np.float64) * second.astype(np.float64)).sum(1)
    return products


def hits(
    queries: np.ndarray, gallery: np.ndarray, query_media: Sequence[str], gallery_media: Sequence[str], k: int
) -> np.ndarray:
    """Whether each query [n, d] finds its partner, the row of its number in the gallery, among the first `k`;
    [n] in 0..1. Others of the query's medium do not compete.
    """
    rank = ranks(queries, gallery, query_media, gallery_media)
    found: np.ndarray = np.clip(k + 1 - rank, 0, 1)
    return found


def ranks(
    queries: np.ndarray, gallery: np.ndarray, query_media: Sequence[str], gallery_media: Sequence[str]
) -> np.ndarray:
    """The place of each query's partner, from 1 on, [n]; one that is as near is ahead by half."""
    similarity = queries.astype(np.float64) @ gallery.astype(np.float64).T
    own = np.diag(similarity)[:, None]
    ahead = np.clip(0.5 + (similarity - own) / (2 * TIE), 0, 1)
    same = np.asarray(query_media)[:, None] == np.asarray(gallery_media)
    np.fill_diagonal(same, True)
    place: np.ndarray = 1 + np.where(same, 0, ahead).sum(1)
    return place
