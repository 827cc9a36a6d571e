"""The mesh under systemd: units, users, directories and configuration of each role, as `aimesh install` writes them."""
