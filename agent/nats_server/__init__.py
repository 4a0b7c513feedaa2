"""A nats-server of our own: its binary, configuration, rights of its users, process."""
