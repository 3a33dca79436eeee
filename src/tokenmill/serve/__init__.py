"""The network faces of a served model. Everything here speaks to an `api.contract.TextEngine`; nothing tokenizes."""
