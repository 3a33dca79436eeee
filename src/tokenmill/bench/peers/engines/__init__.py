"""A file per engine with a class `Peer` (contract.py); found by its name."""
