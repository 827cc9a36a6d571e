"""The control plane: keeps membership in etcd, decides placement and routing, serves the API and xDS."""
