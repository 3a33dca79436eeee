"""One address before many servers: nodes and their choice, forwarding, health checks, the routes of `/nodes`."""
