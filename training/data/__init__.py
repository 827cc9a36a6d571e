"""What a job learns from: sets that ship with packages, uploaded shards, folders; and which samples a step takes."""
