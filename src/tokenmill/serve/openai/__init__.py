"""The OpenAI-shaped endpoints: schema (what is accepted), convert (into TextRequests), one file per endpoint."""
