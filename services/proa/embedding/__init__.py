"""The torch side of the embedding-parity store: embeddings whose rows outlive their servers."""

from proa.embedding.bag import ParityEmbeddingBag
from proa.embedding.prefetch import PrefetchIter
from proa.embedding.table import Table

__all__ = ["ParityEmbeddingBag", "PrefetchIter", "Table"]
