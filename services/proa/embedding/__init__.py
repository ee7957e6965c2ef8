"""The torch side of the embedding-parity store: embeddings whose rows outlive their servers."""

from proa.embedding.bag import ParityEmbeddingBag, pull_ahead
from proa.embedding.prefetch import PrefetchIter
from proa.embedding.store import ParityStore, StoreTable
from proa.embedding.table import Table
from proa.store.pushing import Session

__all__ = [
    "ParityEmbeddingBag", "ParityStore", "PrefetchIter", "Session", "StoreTable", "Table",
    "pull_ahead",
]  # fmt: skip
