"""POST /v1/responses: schema, convert (into the chat request), answer (items), events, endpoint."""
