"""xDS: compiles the cluster's state into what gRPC clients and Envoy are configured with, and serves it to them."""
