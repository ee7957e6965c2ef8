"""`proa demo store`: a recommender trains while a shard of its tables dies."""
