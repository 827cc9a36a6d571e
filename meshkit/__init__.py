"""What every aimesh process is built with: settings, logs, errors, gRPC servers and channels, shutdown. No domain."""
