"""One file a migration, each after the one that it names."""
