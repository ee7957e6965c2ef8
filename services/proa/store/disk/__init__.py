"""What a shard's Redis or Valkey is told, and what its answers mean: commands out, replies in."""
