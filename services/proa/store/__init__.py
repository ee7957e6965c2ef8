"""The embedding-parity store: tables that outlive the death of a shard (DESIGN 9)."""
