"""The `aimesh` command line. Commands import what they need when they run, so that it starts at once."""
