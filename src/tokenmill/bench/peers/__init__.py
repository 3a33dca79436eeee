"""Other engines on our workloads, each in a process of its own. A peer is one file: `Peer` of peers/contract.py."""
