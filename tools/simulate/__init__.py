"""A simulated mesh: real etcd, real coordinators, and agents and clients that speak the contracts and do no work."""
