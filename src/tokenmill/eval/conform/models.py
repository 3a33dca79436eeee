"""Listing models."""

from __future__ import annotations

from tokenmill.eval.conform.probe import Probe, expect

GROUP = "models"


def listing(probe: Probe) -> None:
    """GET /v1/models lists models with id, object and created"""
    body = probe.client.get("/v1/models").json()
    expect(body["object"] == "list", "object is not list")
    for card in body["data"]:
        expect(card["object"] == "model" and isinstance(card["created"], int), f"odd entry {card}"[:160])
    expect(probe.model in [card["id"] for card in body["data"]], f"{probe.model} is not listed")


def single(probe: Probe) -> None:
    """GET /v1/models/NAME shows one, and 404 for a name that is none"""
    expect(probe.client.get(f"/v1/models/{probe.model}").json()["id"] == probe.model, "another model is shown")
    status = probe.client.get("/v1/models/no-such-model").status_code
    expect(status == 404, f"an unknown model is answered {status}")


CHECKS = (listing, single)
