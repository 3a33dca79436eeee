"""The Anthropic-shaped endpoints: schema, convert (into the chat request), answer (blocks and events), endpoints."""
