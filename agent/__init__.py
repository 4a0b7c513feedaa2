"""The program: settings, connection, collectors and the command line; it assembles the services."""
