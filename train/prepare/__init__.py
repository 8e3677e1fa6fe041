"""A corpus becomes tokenized shards: `python -m train.prepare --source ... --out DIR`."""
