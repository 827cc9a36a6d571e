"""What people run: the `aimesh` command line, the one-machine mesh, the doctor, the gateway."""
